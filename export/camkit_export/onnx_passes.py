"""What makes an ONNX graph shorter: constants computed, no-operations left out, equal parts joined."""

import onnx_ir
from onnx_ir.passes import Sequential, common
from onnxscript import optimizer, rewriter
from onnxscript.rewriter.rules import common as rules

# Of onnxscript's own those that explanations need; its slice_split_rule looks through the whole graph for every node.
_RULES = [
    rules.mul_by_1_rule,
    rules.add_0_rule,
    rules.sub_0_rule,
    rules.div_by_1_rule,
    rules.one_reshape_matmul_reshape_rule,
    rules.two_reshapes_matmul_reshape_rule,
    rules.collapse_slice_rule,
    rules.collapse_slice2_rule,
    rules.materialize_reshape_shape_rule,
    rules.cast_cast_rule,
    rules.no_op_cast_rule,
    rules.no_op_expand_rule,
    rules.flatten_to_reshape_rule,
    rules.reshape_reshape_rule,
    rules.no_op_transpose_rule,
    rules.transpose_transpose_rule,
    rules.unsqueeze_unsqueeze_rule,
    rules.squeeze_reshape_1d_rule,
    rules.no_op_dynamic_scatter_nd_rule,
    rules.no_op_static_scatter_nd_rule,
    rules.normalize_pad_format_conv_rule,
    rules.fuse_pad_into_conv_rule,
    rules.remove_optional_bias_from_conv_rule,
    rules.remove_optional_bias_from_conv_transpose_rule,
    rules.remove_optional_bias_from_gemm_rule,
]
_ROUNDS = 2


def shorten(model: onnx_ir.Model) -> None:
    """Changes a model in place; its answers stay the same."""
    common.InlinePass()(model)
    # rules are tried on every node: only after those that work out sizes nobody needs are gone
    _fold(model)
    for _ in range(_ROUNDS):
        rewriter.rewrite(model, _RULES)
        _fold(model)
    Sequential(
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.LiftSubgraphInitializersToMainGraphPass(),
        common.DeduplicateInitializersPass(),
        common.CommonSubexpressionEliminationPass(),
        common.OutputFixPass(),
        common.NameFixPass(),
    )(model)


def _fold(model: onnx_ir.Model) -> None:
    optimizer.fold_constants(model)
    optimizer.remove_unused_nodes(model)
