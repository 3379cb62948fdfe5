# cmake -DWAY=... -P use.cmake: does one thing that a user would do with the library.
set(here ${CMAKE_CURRENT_LIST_DIR})
set(prefix ${WORK}/prefix)
set(build ${WORK}/${WAY})
file(REMOVE_RECURSE ${build})

function(step)
  execute_process(COMMAND ${ARGN} COMMAND_ERROR_IS_FATAL ANY)
endfunction()

# use(PROJECT OPTION...): configures, builds and runs it.
function(use project)
  step(${CMAKE_COMMAND} -S ${here}/${project} -B ${build} -G ${GENERATOR}
    -DCMAKE_CXX_COMPILER=${COMPILER} ${ARGN})
  step(${CMAKE_COMMAND} --build ${build})
  execute_process(COMMAND ${build}/program RESULT_VARIABLE failed)
  if(failed AND NOT failed EQUAL 77)
    message(FATAL_ERROR "the program returned ${failed}")
  endif()
endfunction()

if(WAY STREQUAL "install")
  file(REMOVE_RECURSE ${prefix})
  step(${CMAKE_COMMAND} --install ${BINARY} --prefix ${prefix})
  # Relocatable: no installed CMake file knows where it was made or put.
  file(GLOB_RECURSE files ${prefix}/*.cmake)
  foreach(file IN LISTS files)
    file(READ ${file} text)
    foreach(place IN ITEMS ${SOURCE} ${BINARY} ${prefix})
      string(FIND "${text}" "${place}" at)
      if(NOT at EQUAL -1)
        message(FATAL_ERROR "${file} names ${place}")
      endif()
    endforeach()
  endforeach()

elseif(WAY STREQUAL "find_package")
  use(host -DCMAKE_PREFIX_PATH=${prefix})

elseif(WAY STREQUAL "moved")
  set(elsewhere "${WORK}/some where/else")
  file(REMOVE_RECURSE ${elsewhere})
  file(COPY ${prefix}/ DESTINATION ${elsewhere})
  use(host "-DCMAKE_PREFIX_PATH=${elsewhere}")

elseif(WAY STREQUAL "subdirectory")
  use(host -DOMNISPARSE_SOURCE=${SOURCE})

elseif(WAY STREQUAL "with_nvcc")
  use(cuda -DCMAKE_PREFIX_PATH=${prefix} -DCMAKE_CUDA_COMPILER=${NVCC} -DCMAKE_CUDA_ARCHITECTURES=80)

elseif(WAY STREQUAL "without_nvcc")
  if(NVCC)
    set(hide_nvcc -DCMAKE_CUDA_COMPILER=NOTFOUND)  # what CMake concludes where there is none
  endif()
  execute_process(
    COMMAND ${CMAKE_COMMAND} -S ${here}/cuda -B ${build} -G ${GENERATOR}
      -DCMAKE_CXX_COMPILER=${COMPILER} -DCMAKE_PREFIX_PATH=${prefix} ${hide_nvcc}
    RESULT_VARIABLE failed OUTPUT_VARIABLE output ERROR_VARIABLE output)
  message("${output}")
  string(REGEX REPLACE "[ \n]+" " " output "${output}")  # CMake wraps its messages
  if(NOT failed OR NOT output MATCHES "Reason given by package: omnisparse: component cuda needs nvcc, and none was found: install")
    message(FATAL_ERROR "asking for the component cuda without nvcc must fail and say what to do")
  endif()

else()
  message(FATAL_ERROR "unknown way: ${WAY}")
endif()
