// A plan is plain data: print it, save it, load it, edit it, write one by hand, run any of them.
#include <omnisparse/presets.hpp>
#include <omnisparse/testing/random.hpp>

#include <cstdio>

int main() {
  using namespace omnisparse;
  attention_shape const shape{
      .batch = 1, .q_heads = 2, .kv_heads = 1, .q_tokens = 256, .kv_tokens = 256, .dim = 32};
  auto const t = testing::random_tensors<float>(shape, 6);
  auto const attend = attention{backend::cpu{}}
                          .with(near_field{.window = 16, .sinks = 2})
                          .with(chunk{64})
                          .with(selector::far_mass{.epsilon = 0.3f})
                          .with(budget::per_head{.recall = 0.6f});
  workspace<> memory(attend.workspace_bytes(shape));
  auto plan = attend.make_plan(shape);
  or_throw(attend.plan(t.q_view(), t.k_view(), plan, memory));

  plan_view<> const view = plan.view();
  for (int c = 0; c < view.chunks(); ++c) {
    std::printf("rows %d..: %d keys kept:", c * view.chunk_rows,
                view.kept_counts[view.list(0, c, 0)]);
    for (int n = 0; n < smaller(8, view.kept_counts[view.list(0, c, 0)]); ++n) {
      std::printf(" %d", view.kept_at(0, c, 0)[n]);
    }
    std::printf(" ...\n");
  }

  std::string const bytes = to_bytes(plan);  // save and load
  attention_plan<> loaded;
  or_throw(from_bytes(bytes, loaded));
  loaded.view().rows_at(0, 0)[255] = row_class::rescued;  // edit: the last row sees everything
  std::vector<float> out(t.q.size());
  or_throw(attend.run(t.q_view(), t.k_view(), t.v_view(), loaded,
                      tensor_view(out.data(), {1, 2, 256, 32}), memory));

  loaded.view().kept_at(0, 1, 0)[0] = 999;  // a plan that makes no sense is refused in words
  status const refused = attend.run(t.q_view(), t.k_view(), t.v_view(), loaded,
                                    tensor_view(out.data(), {1, 2, 256, 32}), memory);
  std::printf("%zu bytes saved; a wrong entry: %s\n", bytes.size(), refused.message);
  return refused.code == status_code::invalid_plan ? 0 : 1;
}
