// From prefill to decode: the cache is built from the plan, so the tokens that no list kept never
// take memory, and each step reads only what its query asks for.
#include <omnisparse/presets.hpp>
#include <omnisparse/testing/random.hpp>

#include <cstdio>

int main() {
  using namespace omnisparse;
  attention_shape const shape{
      .batch = 1, .q_heads = 6, .kv_heads = 2, .q_tokens = 1024, .kv_tokens = 1024, .dim = 64};
  auto const t = testing::random_tensors<float>(shape, 4, 0.6f);
  std::vector<float> out(t.q.size());
  auto const attend = presets::local_first(backend::cpu{}, shape.kv_tokens)
                          .with(slim::head_fetch{.threshold = 0.5f});
  workspace<> memory(attend.workspace_bytes(shape));
  auto const plan = attend.make_plan(shape);
  or_throw(attend.plan(t.q_view(), t.k_view(), plan, memory));
  or_throw(attend.run(t.q_view(), t.k_view(), t.v_view(), plan,
                      tensor_view(out.data(), {1, 6, 1024, 64}), memory));

  kv_cache<backend::cpu, float> cache(
      {.sequences = 1, .kv_heads = 2, .dim = 64, .max_tokens = 2048});
  int sequence = 0;
  or_throw(cache.add(sequence));
  or_throw(attend.slim(t.k_view(), t.v_view(), plan, cache, sequence));
  std::printf("cache: %zu bytes in use, %zu if full, %d of %d pages free\n", cache.bytes_in_use(),
              cache.full_bytes(), cache.free_pages(), cache.pages());

  // Ten steps: append the token's own key and value first, then attend.
  auto const next = testing::random_tensors<float>({1, 6, 2, 10, 10, 64}, 5);
  std::vector<float> step_out(6 * 64);
  workspace<> step_memory(attend.decode_workspace_bytes(cache, 1, 6));
  for (int n = 0; n < 10; ++n) {
    auto const token = [n](tensor_view<float const> const& x) {
      return tensor_view<float const, host, 3>(x.at(0, 0, n), {2, 1, 64}, {10 * 64, 64, 1});
    };
    or_throw(cache.append(sequence, token(next.k_view()), token(next.v_view()), segment::text));
    tensor_view<float const> const q(next.q_view().at(0, 0, n), {1, 6, 1, 64}, {0, 10 * 64, 64, 1});
    or_throw(attend.decode(q, cache, tensor_view(step_out.data(), {1, 6, 1, 64}), step_memory));
  }
  std::printf("after ten steps: %d tokens seen, %d + %d stored by KV head 0\n",
              cache.appended(sequence), cache.stored(sequence, 0, segment::visual),
              cache.stored(sequence, 0, segment::text));
  bool const smaller_cache = cache.bytes_in_use() < cache.full_bytes();
  or_throw(cache.finish(sequence));
  return smaller_cache && cache.free_pages() == cache.pages() ? 0 : 1;
}
