/// @file
/// Which head dimensions the CUDA kernels take, and how wide the kernels are that take them.
#pragma once

#include <omnisparse/core/config.hpp>

namespace omnisparse::tuning {

/// 16 bytes of a 16-bit dtype are eight elements: rows of such dimensions begin on 16 bytes.
inline constexpr int least_dim = 16, most_dim = 256, dim_step = 8;

/// Can the kernels take heads of `dim` elements?
OMNISPARSE_HD constexpr bool takes_dim(int dim) noexcept {
  return dim >= least_dim && dim <= most_dim && dim % dim_step == 0;
}

/// The D of the kernels that take heads of `dim` elements: elements beyond are zeros in shared
/// memory and registers, and nobody writes them back.
OMNISPARSE_HD constexpr int kernel_dim(int dim) noexcept {
  return dim <= 64 ? 64 : dim <= 128 ? 128 : 256;
}

}  // namespace omnisparse::tuning
