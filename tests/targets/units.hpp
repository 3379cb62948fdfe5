/// @file
/// Two units of one program: for this machine's processor with threads, for any without.
#pragma once

#include <cstddef>
#include <string>

/// What a unit says of its own code.
struct unit_report {
  int lanes = 0;
  std::size_t workspace = 0;
  void const* code = nullptr;  ///< of a function that both units have
  double density = 0;          ///< of the plan
  float worst = 0;             ///< distance of the fast backend from the reference
};

/// Attends by the plan, or makes one where there are no bytes of one.
unit_report newer_unit(std::string& plan_bytes);
unit_report older_unit(std::string& plan_bytes);
