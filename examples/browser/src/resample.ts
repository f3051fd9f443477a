// Resizes as Pillow does, bit for bit. A canvas resizes too, but every browser in its own way, and none in Pillow's:
// pictures that shrink would reach the model otherwise than in training.

import type { Preprocessing } from "./model.ts";

type Interpolation = Preprocessing["interpolation"];

/** One channel of a picture: rows of bytes. */
export interface Plane {
  values: Uint8Array;
  width: number;
  height: number;
}

interface Kernel {
  support: number;
  weight: (distance: number) => number;
}

/** For each output position: where its window of the input starts, and the weights of that window. */
interface Windows {
  starts: Int32Array;
  weights: Int32Array[];
}

const PRECISION_BITS = 22; // of Pillow's fixed-point weights
const HALF = 1 << (PRECISION_BITS - 1);

const sinc = (x: number): number => (x === 0 ? 1 : Math.sin(x * Math.PI) / (x * Math.PI));

const KERNELS: Record<Exclude<Interpolation, "nearest">, Kernel> = {
  box: { support: 0.5, weight: (x) => (x > -0.5 && x <= 0.5 ? 1 : 0) },
  bilinear: { support: 1, weight: (x) => Math.max(0, 1 - Math.abs(x)) },
  hamming: { support: 1, weight: (x) => (Math.abs(x) >= 1 ? 0 : sinc(x) * (0.54 + 0.46 * Math.cos(x * Math.PI))) },
  bicubic: { support: 2, weight: (x) => cubic(Math.abs(x)) },
  lanczos: { support: 3, weight: (x) => (x >= -3 && x < 3 ? sinc(x) * sinc(x / 3) : 0) },
};

function cubic(x: number): number {
  const a = -0.5;
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  return x < 2 ? (((x - 5) * x + 8) * x - 4) * a : 0;
}

export function resample(plane: Plane, width: number, height: number, interpolation: Interpolation): Plane {
  const toWidth = (from: Plane): Plane => alongRows(from, windows(from.width, width, interpolation));
  const toHeight = (from: Plane): Plane => alongColumns(from, windows(from.height, height, interpolation));
  // a pass that changes nothing is left out
  if (height === plane.height) return width === plane.width ? plane : toWidth(plane);
  if (width === plane.width) return toHeight(plane);
  // values are rounded to bytes between the passes, so their order shows; this one is Pillow 13's
  const heightFirst = plane.height - height > 2 * Math.max(0, plane.width - width);
  return heightFirst ? toWidth(toHeight(plane)) : toHeight(toWidth(plane));
}

function windows(from: number, to: number, interpolation: Interpolation): Windows {
  const scale = from / to;
  const starts = new Int32Array(to);
  const weights: Int32Array[] = [];
  for (let position = 0; position < to; position += 1) {
    const centre = (position + 0.5) * scale;
    if (interpolation === "nearest") {
      starts[position] = Math.floor(centre);
      weights.push(Int32Array.of(1 << PRECISION_BITS));
      continue;
    }
    // a picture that shrinks is filtered against aliasing: the window grows with the scale
    const stretch = Math.max(1, scale);
    const { support, weight } = KERNELS[interpolation];
    const start = Math.max(0, Math.trunc(centre - support * stretch + 0.5));
    const end = Math.min(from, Math.trunc(centre + support * stretch + 0.5));
    const window = Array.from({ length: end - start }, (_, index) =>
      weight((index + start - centre + 0.5) * (1 / stretch)),
    );
    const total = window.reduce((sum, value) => sum + value, 0);
    starts[position] = start;
    weights.push(Int32Array.from(window, (value) => fixed(value / total)));
  }
  return { starts, weights };
}

const fixed = (value: number): number => Math.trunc(value * (1 << PRECISION_BITS) + (value < 0 ? -0.5 : 0.5));

const byte = (sum: number): number => Math.min(255, Math.max(0, sum >> PRECISION_BITS));

function alongRows({ values, width, height }: Plane, { starts, weights }: Windows): Plane {
  const wanted = starts.length;
  const output = new Uint8Array(wanted * height);
  for (let column = 0; column < wanted; column += 1) {
    const window = weights[column]!;
    for (let row = 0; row < height; row += 1) {
      const first = row * width + starts[column]!;
      let sum = HALF;
      for (let index = 0; index < window.length; index += 1) sum += window[index]! * values[first + index]!;
      output[row * wanted + column] = byte(sum);
    }
  }
  return { values: output, width: wanted, height };
}

function alongColumns({ values, width }: Plane, { starts, weights }: Windows): Plane {
  const wanted = starts.length;
  const output = new Uint8Array(width * wanted);
  for (let row = 0; row < wanted; row += 1) {
    const window = weights[row]!;
    for (let column = 0; column < width; column += 1) {
      const first = starts[row]! * width + column;
      let sum = HALF;
      for (let index = 0; index < window.length; index += 1) sum += window[index]! * values[first + index * width]!;
      output[row * width + column] = byte(sum);
    }
  }
  return { values: output, width, height: wanted };
}
