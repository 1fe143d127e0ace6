// What sort of op a node is: its colour, and its name in the legend.

const KINDS = [
  ["product", "product", /^(sq\.)?(aten\.)?_?(shift_matmul|matmul|conv|addmm|mm|bmm|convolution|linear)/],
  ["quantise", "quantiser", /quant|absmax|clip_range|group_(exponent|scale)|exponent/],
  ["pack", "packing", /pack/],
  ["norm", "norm", /norm|ema/],
  ["loss", "softmax, loss", /softmax|loss|cross_entropy/],
  ["input", "parameter, input", /^(placeholder|constant)$/],
  ["view", "layout", /^aten\.(view|permute|expand|unsqueeze|squeeze|clone|reshape|t|transpose|slice|cat|select)$/],
];

export const kindOf = (op) =>
  (op.startsWith("sq.l1_") || op.includes("norm") ? "norm" : KINDS.find(([, , pattern]) => pattern.test(op))?.[0]) ??
  "plain";

export const LEGEND = [...KINDS.map(([name, title]) => [name, title]), ["plain", "other"]];

/** `conv_fprop` of sq.conv_fprop. */
export const shortOp = (op) => op.replace(/^(sq|aten)\./, "");
