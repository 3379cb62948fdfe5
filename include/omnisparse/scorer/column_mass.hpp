/// @file
/// A key is worth the attention that probe rows of its chunk pay to it.
#pragma once

#include <omnisparse/core/math.hpp>
#include <omnisparse/core/observation.hpp>
#include <omnisparse/core/question.hpp>

namespace omnisparse::scorer {

/// Column sums of attention probability over the last rows of the chunk and an even stride of the
/// others, summed over the heads of the group, outside each row's near field. Cost: the probe rows
/// attend to all their keys once. After the published figure; which rows are probed is ours.
struct column_mass {
  using observes = observation::probe_mass;
  int last = 16;           ///< the last rows of the chunk that are probes, >= 0
  int strided = 48;        ///< about how many others are probes, evenly spread, >= 0
  bool normalise = false;  ///< divide by the probe rows that see the key: fair to late keys

  /// What is wrong with the options, or null.
  constexpr char const* refuses() const noexcept {
    return last >= 0 && strided >= 0
               ? nullptr
               : "omnisparse: scorer::column_mass counts rows: last and strided must be >= 0";
  }
  OMNISPARSE_HD constexpr bool probes(int row, int rows) const noexcept {
    if (row >= rows - last) return true;
    if (strided <= 0) return false;
    int const step = larger(1, (rows - last) / strided);
    return row % step == step / 2;
  }
  OMNISPARSE_HD constexpr float score(observes seen, token) const noexcept {
    return normalise && seen.rows > 0 ? seen.mass / static_cast<float>(seen.rows) : seen.mass;
  }
};

}  // namespace omnisparse::scorer
