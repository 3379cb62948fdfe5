/// @file
/// `study` on the GPU: one function, in a file that nvcc compiles or, without it, one that refuses.
#pragma once

#include "compose.hpp"

namespace study {

/// Plans (or takes `given`), attends, and brings everything back. Throws std::runtime_error with a
/// sentence where there is no GPU or the build has no CUDA.
template <class T>
outcome<T> run_on_gpu(options const& o, tensors<T> const& t, attention_plan<host> given);

}  // namespace study
