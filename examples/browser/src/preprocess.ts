// From the pixels of a picture to the network's input, step by step as camkit/preprocessing.py does it.

import type { Preprocessing } from "./model.ts";
import { type Plane, resample } from "./resample.ts";

const MOST_PIXELS = 100_000_000;

/** Which part of a picture the model sees, in the picture's own pixels; beyond its edges where it is padded. */
export interface Region {
  left: number;
  top: number;
  width: number;
  height: number;
}

export interface Prepared {
  tensor: Float32Array<ArrayBuffer>; // [C, H, W]
  region: Region;
}

export function preprocess(pixels: ImageData, wanted: Preprocessing): Prepared {
  const [height, width] = wanted.size;
  const [resizedHeight, resizedWidth] = resizedTo(pixels.height, pixels.width, wanted);
  if (resizedHeight * resizedWidth > MOST_PIXELS) {
    throw new Error(`A picture of ${pixels.width} x ${pixels.height} pixels is too long and thin to be resized.`);
  }
  const top = offset(resizedHeight, height);
  const left = offset(resizedWidth, width);
  const area = width * height;
  const tensor = new Float32Array(wanted.channels * area);
  planes(pixels, wanted.channels).forEach((plane, channel) => {
    const resized = resample(plane, resizedWidth, resizedHeight, wanted.interpolation);
    const levels = normalised(wanted.mean[channel]!, wanted.std[channel]!);
    for (let row = 0; row < height; row += 1) {
      for (let column = 0; column < width; column += 1) {
        const level = at(resized, row + top, column + left) ?? wanted.fill[channel]!;
        tensor[channel * area + row * width + column] = levels[level]!;
      }
    }
  });
  const [across, down] = [pixels.width / resizedWidth, pixels.height / resizedHeight];
  return { tensor, region: { left: left * across, top: top * down, width: width * across, height: height * down } };
}

function resizedTo(height: number, width: number, { resize, resize_mode }: Preprocessing): [number, number] {
  if (resize === null) return [height, width];
  if (typeof resize === "number") {
    return height < width
      ? [resize, Math.trunc((resize * width) / height)]
      : [Math.trunc((resize * height) / width), resize];
  }
  if (resize_mode === "exact") return resize;
  const ratios = [height / resize[0], width / resize[1]];
  const ratio = resize_mode === "cover" ? Math.min(...ratios) : Math.max(...ratios);
  return [Math.max(1, roundToEven(height / ratio)), Math.max(1, roundToEven(width / ratio))];
}

/** Where the network's input starts in the resized picture: negative where the picture is smaller and gets a border. */
function offset(have: number, want: number): number {
  return have < want ? -Math.floor((want - have) / 2) : roundToEven((have - want) / 2);
}

/** Python's `round`: a half goes to the even neighbour. One pixel would move the whole crop. */
function roundToEven(value: number): number {
  const below = Math.floor(value);
  if (value - below !== 0.5) return Math.round(value);
  return below % 2 === 0 ? below : below + 1;
}

function planes({ data, width, height }: ImageData, channels: 1 | 3): Plane[] {
  const read = (value: (pixel: number) => number): Plane => {
    const values = new Uint8Array(width * height);
    for (let index = 0; index < values.length; index += 1) values[index] = value(index * 4);
    return { values, width, height };
  };
  if (channels === 3) return [0, 1, 2].map((channel) => read((pixel) => data[pixel + channel]!));
  // Pillow's grey, in its fixed point
  return [read((p) => (data[p]! * 19595 + data[p + 1]! * 38470 + data[p + 2]! * 7471 + 0x8000) >> 16)];
}

function at({ values, width, height }: Plane, row: number, column: number): number | undefined {
  return row >= 0 && row < height && column >= 0 && column < width ? values[row * width + column] : undefined;
}

/** The network's input for each of the 256 levels, rounded to float32 after every step, as torch does. */
function normalised(mean: number, std: number): Float32Array {
  const [shift, scale] = [Math.fround(mean), Math.fround(std)];
  return Float32Array.from({ length: 256 }, (_, level) => Math.fround(Math.fround(level / 255) - shift) / scale);
}
