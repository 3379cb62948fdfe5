// What a build without CUDA answers.
#include "cuda.hpp"

#include <stdexcept>

namespace study {

template <class T>
outcome<T> run_on_gpu(options const&, tensors<T> const&, attention_plan<host>) {
  throw std::runtime_error(
      "--backend cuda: this program was built without CUDA: configure with "
      "-DOMNISPARSE_ENABLE_CUDA=ON where nvcc is installed, or use --backend cpu");
}

template outcome<float> run_on_gpu(options const&, tensors<float> const&, attention_plan<host>);
template outcome<omnisparse::half> run_on_gpu(options const&, tensors<omnisparse::half> const&,
                                              attention_plan<host>);
template outcome<bfloat16> run_on_gpu(options const&, tensors<bfloat16> const&,
                                      attention_plan<host>);

}  // namespace study
