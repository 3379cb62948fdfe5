/// @file
/// What policies are asked about: a row, a token, the keys that may be kept.
#pragma once

#include <omnisparse/core/config.hpp>

namespace omnisparse {

/// What a position holds. Text rows are never lazy and text keys are always kept. In memory, any
/// value that is not text counts as visual.
enum class segment : unsigned char { text, visual };

/// One query row: its position in tokens and its query head.
struct query_row {
  int position = 0;
  int head = 0;
};

/// The keys that a budget divides: the visual tokens outside every sink that at least one row of
/// the chunk sees beyond its near field. Text tokens are kept on top of the budget.
struct kv_extent {
  int tokens = 0;
};

/// One key: its position, what it is, and whether the last list or the near field holds it.
struct token {
  int position = 0;
  segment kind = segment::visual;
  bool kept = false;
};

/// What a query row does: near field only; near field and its chunk's list; everything.
enum class row_class : unsigned char { lazy = 0, active = 1, rescued = 2 };

}  // namespace omnisparse
