# The component cuda: omnisparse::cuda, for sources that nvcc compiles. Read by the library's own
# build and by the installed package, each only when asked for. Sets omnisparse_cuda_FOUND.
include(CheckLanguage)
check_language(CUDA)
if(NOT CMAKE_CUDA_COMPILER)
  set(omnisparse_cuda_FOUND FALSE)
  string(CONCAT omnisparse_NOT_FOUND_MESSAGE
    "omnisparse: component cuda needs nvcc, and none was found: install the CUDA Toolkit and put nvcc "
    "on PATH, or set CMAKE_CUDA_COMPILER; the CPU backend needs no component")
  message(STATUS "${omnisparse_NOT_FOUND_MESSAGE}")
  return()
endif()

# 'native' fails to configure where there is no GPU, and CMake's own default is too old for us. 80 is
# code and PTX, from which newer GPUs make their own; 90a is Hopper's own code, of no use elsewhere.
if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
  set(CMAKE_CUDA_ARCHITECTURES 80 90a-real)
endif()
enable_language(CUDA)
if(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS 12.4)
  set(omnisparse_cuda_FOUND FALSE)
  string(CONCAT omnisparse_NOT_FOUND_MESSAGE
    "omnisparse: component cuda needs CUDA 12.4 or newer, and nvcc is ${CMAKE_CUDA_COMPILER_VERSION}: "
    "update the CUDA Toolkit, or set CMAKE_CUDA_COMPILER to a newer nvcc")
  message(STATUS "${omnisparse_NOT_FOUND_MESSAGE}")
  return()
endif()
find_package(CUDAToolkit REQUIRED)

if(NOT TARGET omnisparse::cuda)
  add_library(omnisparse::cuda INTERFACE IMPORTED GLOBAL)
  target_link_libraries(omnisparse::cuda INTERFACE omnisparse::omnisparse CUDA::cudart_static)
  # CMake 3.25 knows no cuda_std_20 for nvcc and drops CMAKE_CUDA_STANDARD 20 silently.
  if("cuda_std_20" IN_LIST CMAKE_CUDA_COMPILE_FEATURES)
    target_compile_features(omnisparse::cuda INTERFACE cuda_std_20)
  else()
    target_compile_options(omnisparse::cuda INTERFACE $<$<COMPILE_LANGUAGE:CUDA>:-std=c++20>)
  endif()
endif()
set(omnisparse_cuda_FOUND TRUE)
