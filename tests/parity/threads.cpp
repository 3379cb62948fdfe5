#include "support/run.hpp"

#include <thread>

#if defined(__unix__)
#  include <sys/wait.h>
#  include <unistd.h>
#  include <csignal>
#  include <ctime>
#endif

using namespace testing_support;

namespace {

attention_shape const shape{1, 4, 2, 210, 210, 24};

auto composed() {
  return attention{backend::cpu{}}
      .with(near_field{20, 2})
      .with(chunk{64})
      .with(selector::far_mass{.epsilon = 0.3f})
      .with(rescue::coverage{.least = 0.6f})
      .with(budget::flattest_head{.recall = 0.7f});
}

struct outcome {
  std::vector<float> out, step;
  bool ok = false;
  bool operator==(outcome const&) const = default;
};

// A call and a step in workspaces of these sizes, 0 for what this functor asks for.
template <class Attention>
outcome run(Attention const& attend, std::size_t bytes = 0, std::size_t step_bytes = 0) {
  auto const t = testing::random_tensors<float>(shape, 5);
  testing::result<float> r(shape), step({1, 4, 2, 1, 210, 24});
  workspace<> memory(bytes > 0 ? bytes : attend.workspace_bytes(shape));
  kv_cache<backend::cpu, float> cache({.kv_heads = 2, .dim = 24, .max_tokens = 2000});
  int id = 0;
  bool ok = attend(t.q_view(), t.k_view(), t.v_view(), r.out_view, r.lses, memory).ok();
  ok = cache.add(id).ok() && ok;
  tensor_view<float const, host, 3> const k(t.k.data(), {2, 210, 24}), v(t.v.data(), {2, 210, 24});
  for (int n = 0; n < 5; ++n) ok = cache.append(id, k, v, segment::visual).ok() && ok;
  workspace<> own(step_bytes > 0 ? step_bytes : attend.decode_workspace_bytes(cache, 1, 4));
  tensor_view<float const> const q(t.q.data(), {1, 4, 1, 24}, {0, 210 * 24, 24, 1});
  ok = attend.decode(q, cache, step.out_view, step.lses, own).ok() && ok;
  return {r.out, step.out, ok};
}

std::size_t step_bytes_of(int count) {
  kv_cache<backend::cpu, float> const cache({.kv_heads = 2, .dim = 24, .max_tokens = 2000});
  return composed().with(threads{count}).decode_workspace_bytes(cache, 1, 4);
}

}  // namespace

TEST_CASE("bits do not depend on the number of threads, which may be an option") {
  outcome const one = run(composed().with(threads{1}));
  REQUIRE(one.ok);
  for (int const count : {0, 2, 5}) CHECK(run(composed().with(threads{count})) == one);
  CHECK(run(attention{backend::cpu{3}}
                .with(composed().policies().selector)
                .with(composed().policies().rescue)
                .with(composed().policies().budget)
                .with(near_field{20, 2})
                .with(chunk{64})) == one);
}

TEST_CASE("a workspace counted for fewer threads serves as many as fit") {
  std::size_t const one = composed().with(threads{1}).workspace_bytes(shape);
  outcome const wanted = run(composed().with(threads{1}));
  CHECK(run(composed().with(threads{6}), one, step_bytes_of(1)) == wanted);
  CHECK(run(composed(), one, step_bytes_of(1)) == wanted);
  CHECK_FALSE(run(composed().with(threads{6}), one - 300, step_bytes_of(1)).ok);
  CHECK_FALSE(run(composed().with(threads{6}), one, 1000).ok);
}

TEST_CASE("a negative number of threads is refused") {
  auto const attend = composed().with(threads{-1});
  CHECK(attend.can_run(shape).code == status_code::invalid_option);
  CHECK(attend.workspace_bytes(shape) == 0);
  CHECK_FALSE(run(attend, 1 << 24, 1 << 24).ok);
}

TEST_CASE("calls from many threads and from parallel regions are right") {
  outcome const wanted = run(composed().with(threads{1}));
  std::vector<outcome> all(4);
  std::vector<std::thread> callers;
  for (std::size_t n = 0; n < all.size(); ++n) {
    callers.emplace_back(
        [&all, n] { all[n] = run(composed().with(threads{static_cast<int>(n)})); });
  }
  for (auto& caller : callers) caller.join();
  for (outcome const& x : all) CHECK(x == wanted);
  all.assign(4, {});
#pragma omp parallel for num_threads(4)
  for (int n = 0; n < 4; ++n) all[static_cast<std::size_t>(n)] = run(composed().with(threads{n}));
  for (outcome const& x : all) CHECK(x == wanted);
}

#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
#  define SANITIZED 1
#elif defined(__has_feature)
#  if __has_feature(thread_sanitizer) || __has_feature(address_sanitizer)
#    define SANITIZED 1
#  endif
#endif
#if defined(__unix__) && !defined(SANITIZED)  // their runtimes do not survive a fork
TEST_CASE("a forked child may call on one thread") {
  outcome const wanted = run(composed().with(threads{2}));
  pid_t const child = fork();
  if (child == 0) _exit(run(composed().with(threads{1})) == wanted ? 0 : 1);
  int code = -1, waited = 0;
  timespec const pause{0, 100'000'000};
  while (waited < 300 && waitpid(child, &code, WNOHANG) != child) {
    nanosleep(&pause, nullptr);
    ++waited;
  }
  if (waited == 300) kill(child, SIGKILL);
  CHECK(code == 0);
}
#endif
