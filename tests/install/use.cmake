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

# package_of_eigen(VERSION): a package that says it is that version, of the headers that are here.
function(package_of_eigen version)
  file(REMOVE_RECURSE ${WORK}/eigen-${version})
  file(WRITE ${WORK}/eigen-${version}/Eigen3Config.cmake
    "add_library(Eigen3::Eigen INTERFACE IMPORTED)\n"
    "set_target_properties(Eigen3::Eigen PROPERTIES INTERFACE_INCLUDE_DIRECTORIES \"${EIGEN}\")\n")
  include(CMakePackageConfigHelpers)
  write_basic_package_version_file(${WORK}/eigen-${version}/Eigen3ConfigVersion.cmake
    VERSION ${version} COMPATIBILITY SameMajorVersion ARCH_INDEPENDENT)
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

elseif(WAY STREQUAL "eigen_5")
  package_of_eigen(5.0.1)
  use(host -DCMAKE_PREFIX_PATH=${prefix} -DEigen3_DIR=${WORK}/eigen-5.0.1)

elseif(WAY STREQUAL "eigen_6")
  package_of_eigen(6.0)
  execute_process(  # the system's own Eigen is hidden
    COMMAND ${CMAKE_COMMAND} -S ${here}/host -B ${build} -G ${GENERATOR} -DCMAKE_MAKE_PROGRAM=${MAKE}
      -DCMAKE_CXX_COMPILER=${COMPILER} -DCMAKE_PREFIX_PATH=${prefix} -DEigen3_DIR=${WORK}/eigen-6.0
      -DCMAKE_FIND_USE_CMAKE_SYSTEM_PATH=OFF -DCMAKE_FIND_USE_SYSTEM_ENVIRONMENT_PATH=OFF
    RESULT_VARIABLE failed OUTPUT_VARIABLE output ERROR_VARIABLE output)
  message("${output}")
  string(REGEX REPLACE "[ \n]+" " " output "${output}")
  if(NOT failed OR NOT output MATCHES "Reason given by package: omnisparse: needs Eigen 3.4 to 5.x, and none was found: install")
    message(FATAL_ERROR "an Eigen that is too new must be refused and the message say what to do")
  endif()

elseif(WAY STREQUAL "embedded")
  use(embedding -DOMNISPARSE_SOURCE=${SOURCE})
  step(${CMAKE_COMMAND} --install ${build} --prefix ${build}/prefix)

elseif(WAY STREQUAL "embedded_with_eigen")
  use(embedding -DOMNISPARSE_SOURCE=${SOURCE} -DEIGEN_INCLUDE_DIR=${EIGEN})
  step(${CMAKE_COMMAND} --install ${build} --prefix ${build}/prefix)

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
