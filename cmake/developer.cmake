# Flags of our own tests, benchmarks and examples; nothing of this reaches a user of the library.
if(NOT CMAKE_BUILD_TYPE AND NOT CMAKE_CONFIGURATION_TYPES)
  set(CMAKE_BUILD_TYPE Release CACHE STRING "" FORCE)
endif()
find_program(ccache ccache)
if(ccache AND NOT CMAKE_CXX_COMPILER_LAUNCHER)
  set(CMAKE_CXX_COMPILER_LAUNCHER ${ccache})
endif()

add_library(omnisparse_developer INTERFACE)
target_link_libraries(omnisparse_developer INTERFACE omnisparse::omnisparse)
target_compile_options(omnisparse_developer INTERFACE
  -Wall -Wextra -Wshadow -Wconversion -Wsign-conversion)
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  # g++ 12 warns about its own AVX-512 intrinsics.
  target_compile_options(omnisparse_developer INTERFACE -Wno-maybe-uninitialized)
endif()
if(OMNISPARSE_NATIVE)
  target_compile_options(omnisparse_developer INTERFACE -march=native)
endif()
