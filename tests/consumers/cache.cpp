// The cache's header first and alone: without exceptions the standard library brings less along.
#include <omnisparse/cache/kv_cache.hpp>

int main() {}
