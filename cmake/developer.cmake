# Flags of our own tests, examples and benchmarks; nothing of this reaches a user of the library.
if(PROJECT_IS_TOP_LEVEL)
  if(NOT CMAKE_BUILD_TYPE AND NOT CMAKE_CONFIGURATION_TYPES)
    set(CMAKE_BUILD_TYPE Release CACHE STRING "" FORCE)
  endif()
  find_program(ccache ccache)
  if(ccache AND NOT CMAKE_CXX_COMPILER_LAUNCHER)
    set(CMAKE_CXX_COMPILER_LAUNCHER ${ccache})
  endif()
  if(ccache AND OMNISPARSE_ENABLE_CUDA AND NOT CMAKE_CUDA_COMPILER_LAUNCHER)
    set(CMAKE_CUDA_COMPILER_LAUNCHER ${ccache})
  endif()
endif()

add_library(omnisparse_developer INTERFACE)
target_link_libraries(omnisparse_developer INTERFACE omnisparse::omnisparse)
# g++ 12 warns that its own AVX-512 intrinsics may be uninitialised.
target_compile_options(omnisparse_developer INTERFACE
  $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -Wshadow -Wconversion -Wsign-conversion>
  $<$<COMPILE_LANG_AND_ID:CXX,GNU>:-Wno-maybe-uninitialized>)
if(OMNISPARSE_NATIVE)
  target_compile_options(omnisparse_developer INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-march=native>)
endif()

# The same for .cu files: our own code by nvcc.
if(OMNISPARSE_ENABLE_CUDA)
  add_library(omnisparse_developer_cuda INTERFACE)
  target_link_libraries(omnisparse_developer_cuda INTERFACE omnisparse_developer omnisparse::cuda)
  target_compile_options(omnisparse_developer_cuda INTERFACE
    $<$<COMPILE_LANGUAGE:CUDA>:-Werror=all-warnings -Xcompiler=-Wall,-Wextra>)
endif()

# folder_name(VARIABLE FILE): the name of FILE's program, its path from here with '_' for '/'.
function(folder_name variable file)
  cmake_path(RELATIVE_PATH file BASE_DIRECTORY ${CMAKE_CURRENT_SOURCE_DIR} OUTPUT_VARIABLE name)
  cmake_path(REMOVE_EXTENSION name)
  string(REPLACE "/" "_" name ${name})
  set(${variable} ${name} PARENT_SCOPE)
endfunction()
