// BlazeFace comes as a TensorFlow Lite file. onnxruntime-web runs the expression network anyway, so the file is
// rewritten as ONNX in memory instead of loading a second runtime of 9 to 13 MB. Only BlazeFace's operators are known.
// Formats: schema.fbs of TensorFlow Lite, onnx.proto.

const FLOAT = 1, INT64 = 7, HALF = 10; // element types of ONNX
const OPERATORS = {
  0: "Add", 3: "Conv", 4: "DepthwiseConv", 6: "Dequantize", 17: "MaxPool", 19: "Relu", 22: "Reshape", 23: "Resize",
  34: "Pad",
};

/**
 * The network of a TensorFlow Lite file as an ONNX file.
 *
 * Input and outputs keep names, shapes and layout; between them, tensors are channels-first, as ONNX wants them. Half
 * precision weights stay so in the file; onnxruntime folds the casts when it loads it.
 *
 * @param {ArrayBuffer} file
 * @returns {{model: Uint8Array, input: string, outputs: string[]}}
 * @throws {Error} an operator or element type that BlazeFace has not.
 */
export function toOnnx(file) {
  const model = readModel(new DataView(file));
  const { tensors } = model;
  const nodes = [], initializers = [];
  const name = (index) => `t${index}`;
  const node = (type, inputs, output, attributes = {}) => nodes.push(nodeProto(type, inputs, output, attributes));
  const constant = (label, dims, values) => {
    initializers.push(tensorProto(label, dims, INT64, new BigInt64Array(values.map(BigInt))));
    return label;
  };
  const halves = new Map(); // outputs of Dequantize that are weights

  node("Transpose", [tensors[model.input].name], name(model.input), { perm: [0, 3, 1, 2] });
  for (const { type, inputs, outputs: [out], options } of model.operators) {
    const output = name(out);
    const shape = tensors[out].shape;
    const strided = () => ({
      strides: [options.int32(2), options.int32(1)],
      auto_pad: options.int8(0) === 0 ? "SAME_UPPER" : "VALID",
    });
    const weight = (index, perm) => {
      const { shape: from, bytes } = halves.get(index);
      initializers.push(tensorProto(`${name(index)}h`, from, HALF, bytes));
      node("Cast", [`${name(index)}h`], perm ? `${name(index)}f` : name(index), { to: FLOAT });
      if (perm) node("Transpose", [`${name(index)}f`], name(index), { perm });
      return name(index);
    };
    if (type === "Dequantize") {
      const source = tensors[inputs[0]];
      if (source.type !== 1) throw new Error(`element type ${source.type} of a weight`);
      halves.set(out, source);
    } else if (type === "Conv") { // weights: out, height, width, in
      node("Conv", [name(inputs[0]), weight(inputs[1], [0, 3, 1, 2]), weight(inputs[2])], output, strided());
    } else if (type === "DepthwiseConv") { // weights: 1, height, width, out
      const kernel = weight(inputs[1], [3, 0, 1, 2]);
      node("Conv", [name(inputs[0]), kernel, weight(inputs[2])], output, { ...strided(), group: shape[3] });
    } else if (type === "MaxPool") {
      node("MaxPool", [name(inputs[0])], output, { ...strided(), kernel_shape: [options.int32(4), options.int32(3)] });
    } else if (type === "Add") {
      node("Add", inputs.map(name), output);
    } else if (type === "Relu") {
      node("Relu", [name(inputs[0])], output);
    } else if (type === "Pad") { // pairs of before and after for batch, height, width, channels
      const { bytes } = tensors[inputs[1]];
      const pairs = new Int32Array(bytes.slice().buffer);
      const pads = [0, 1].flatMap((end) => [0, 3, 1, 2].map((axis) => pairs[2 * axis + end]));
      node("Pad", [name(inputs[0]), constant(`${output}p`, [8], pads)], output);
    } else if (type === "Resize") {
      const sizes = constant(`${output}s`, [4], [0, 3, 1, 2].map((axis) => shape[axis]));
      const how = { mode: "linear", coordinate_transformation_mode: "half_pixel" };
      node("Resize", [name(inputs[0]), "", "", sizes], output, how);
    } else { // Reshape, at the end only: back to channels-last first
      node("Transpose", [name(inputs[0])], `${output}l`, { perm: [0, 2, 3, 1] });
      node("Reshape", [`${output}l`, constant(`${output}s`, [shape.length], shape)], tensors[out].name);
    }
  }
  const outputs = model.outputs.map((index) => tensors[index].name);
  const graph = [
    ...nodes.map((bytes) => field(1, bytes)),
    field(2, text("blazeface")),
    ...initializers.map((bytes) => field(5, bytes)),
    field(11, valueProto(tensors[model.input])),
    ...model.outputs.map((index) => field(12, valueProto(tensors[index]))),
  ];
  // IR version 8, operator set 17: ones that each onnxruntime of the last years reads
  const bytes = concat([number(1, 8), field(7, concat(graph)), field(8, number(2, 17))]);
  return { model: bytes, input: tensors[model.input].name, outputs };
}

function readModel(view) {
  const root = table(view, view.getUint32(0, true));
  const buffers = root.tables(4).map((buffer) => buffer.bytes(0));
  const codes = root.tables(1).map((code) => Math.max(code.int8(0), code.int32(3)));
  const graph = root.tables(2)[0];
  const tensors = graph.tables(0).map((tensor) => ({
    shape: tensor.int32s(0), type: tensor.int8(1), bytes: buffers[tensor.int32(2)],
    name: new TextDecoder().decode(tensor.bytes(3)),
  }));
  const operators = graph.tables(3).map((operator) => {
    const code = codes[operator.int32(0)];
    if (!(code in OPERATORS)) throw new Error(`operator ${code}`);
    const inputs = operator.int32s(1), outputs = operator.int32s(2);
    return { type: OPERATORS[code], inputs, outputs, options: operator.table(4) };
  });
  return { tensors, operators, input: graph.int32s(1)[0], outputs: graph.int32s(2) };
}

// A table of a FlatBuffer; an absent field is 0 or empty.
function table(view, position) {
  const vtable = position - view.getInt32(position, true);
  const at = (index) => {
    const entry = 4 + 2 * index;
    const offset = entry < view.getUint16(vtable, true) ? view.getUint16(vtable + entry, true) : 0;
    return offset && position + offset;
  };
  const follow = (index) => at(index) && at(index) + view.getUint32(at(index), true);
  const vector = (index, read) => {
    const start = follow(index);
    return start ? Array.from({ length: view.getUint32(start, true) }, (_, i) => read(start + 4 + 4 * i)) : [];
  };
  return {
    int8: (index) => at(index) && view.getInt8(at(index)),
    int32: (index) => at(index) && view.getInt32(at(index), true),
    int32s: (index) => vector(index, (where) => view.getInt32(where, true)),
    table: (index) => follow(index) && table(view, follow(index)),
    tables: (index) => vector(index, (where) => table(view, where + view.getUint32(where, true))),
    bytes: (index) => {
      const start = follow(index);
      return start ? new Uint8Array(view.buffer, start + 4, view.getUint32(start, true)) : new Uint8Array();
    },
  };
}

// Messages of Protocol Buffers.
const text = (string) => new TextEncoder().encode(string);

function concat(parts) {
  const whole = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let end = 0;
  for (const part of parts) {
    whole.set(part, end);
    end += part.length;
  }
  return whole;
}

function varint(value) {
  const bytes = [];
  for (; value > 127; value = Math.floor(value / 128)) bytes.push((value % 128) + 128);
  return [...bytes, value];
}

const number = (id, value) => Uint8Array.from([8 * id, ...varint(value)]);
const field = (id, bytes) => concat([Uint8Array.from([8 * id + 2, ...varint(bytes.length)]), bytes]);

function nodeProto(type, inputs, output, attributes) {
  const parts = inputs.map((input) => field(1, text(input)));
  parts.push(field(2, text(output)), field(4, text(type)));
  for (const [key, value] of Object.entries(attributes)) {
    const [kind, values] = Array.isArray(value) ? [7, value.map((one) => number(8, one))]
      : typeof value === "string" ? [3, [field(4, text(value))]] : [2, [number(3, value)]];
    parts.push(field(5, concat([field(1, text(key)), ...values, varintField(20, kind)])));
  }
  return concat(parts);
}

const varintField = (id, value) => Uint8Array.from([...varint(8 * id), ...varint(value)]);

function tensorProto(label, dims, type, values) {
  const raw = new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
  return concat([...dims.map((dim) => number(1, dim)), number(2, type), field(8, text(label)), field(9, raw)]);
}

function valueProto({ name, shape }) {
  const dims = shape.map((dim) => field(1, number(1, dim)));
  const type = concat([number(1, FLOAT), field(2, concat(dims))]);
  return concat([field(1, text(name)), field(2, field(1, type))]);
}
