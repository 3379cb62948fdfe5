# cmake -DWAY=... -P use.cmake: installs the library, configures, builds and runs a user's project.
set(here ${CMAKE_CURRENT_LIST_DIR})
set(work ${WORK}/${WAY})
file(REMOVE_RECURSE ${work})

function(step)
  execute_process(COMMAND ${ARGN} COMMAND_ERROR_IS_FATAL ANY)
endfunction()
function(consume)
  step(${CMAKE_COMMAND} -S ${here}/consumer -B ${work}/build -G ${GENERATOR}
    -DCMAKE_CXX_COMPILER=${COMPILER} ${ARGN})
  step(${CMAKE_COMMAND} --build ${work}/build)
  step(${work}/build/consumer)
endfunction()

if(WAY STREQUAL "subdirectory")
  consume(-DOMNISPARSE_SOURCE=${SOURCE})
  return()
endif()

step(${CMAKE_COMMAND} --install ${BINARY} --prefix ${work}/prefix)
if(WAY STREQUAL "find_package")
  consume(-DCMAKE_PREFIX_PATH=${work}/prefix)
elseif(WAY STREQUAL "moved")
  file(RENAME ${work}/prefix ${work}/elsewhere)
  consume(-DCMAKE_PREFIX_PATH=${work}/elsewhere)
else()
  execute_process(
    COMMAND ${CMAKE_COMMAND} -E env --unset=CUDACXX PATH=/nowhere ${CMAKE_COMMAND}
      -S ${here}/consumer_cuda -B ${work}/build -G ${GENERATOR} -DCMAKE_CXX_COMPILER=${COMPILER}
      -DCMAKE_PREFIX_PATH=${work}/prefix -DCMAKE_MAKE_PROGRAM=${MAKE_PROGRAM} -DCMAKE_CUDA_COMPILER=NOTFOUND
    RESULT_VARIABLE result OUTPUT_VARIABLE output ERROR_VARIABLE output)
  message("${output}")
  string(REGEX REPLACE "[ \n]+" " " output "${output}")
  if(result EQUAL 0 OR NOT output MATCHES "component cuda needs nvcc")
    message(FATAL_ERROR "asking for the component cuda without nvcc must fail with a clear sentence")
  endif()
endif()
