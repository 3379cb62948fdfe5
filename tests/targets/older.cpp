#include "unit.hpp"

unit_report older_unit(std::string& plan_bytes) { return report(plan_bytes); }
