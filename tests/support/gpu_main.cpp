// The main of the GPU test programs: where no device answers they are skipped, never passed.
#define DOCTEST_CONFIG_IMPLEMENT
#include <doctest/doctest.h>

#include <cuda_runtime_api.h>

#include <cstdio>

int main(int argc, char** argv) {
  // Without a device the count stays untouched, so ask for real work instead.
  void* byte = nullptr;
  if (cudaError_t const error = cudaMalloc(&byte, 1); error != cudaSuccess) {
    std::printf("skipped: no usable GPU: %s\n", cudaGetErrorString(error));
    return 77;
  }
  cudaFree(byte);
  return doctest::Context(argc, argv).run();
}
