// Values as colours. Inferno rises evenly in lightness: twice as hot looks twice as bright, in grey as well.

/** Inferno at 17 even steps, and for signed maps cool-warm at nine, whose middle is grey. */
const INFERNO =
  "000004 0b0724 210c4a 3d0965 57106e 71196e 8a226a a32c61 bc3754 d04545 e35933 f1711f f98c0a fcaa0f f9c932 f2e865 fcffa4";
const COOL_WARM = "3b4cc0 6282ea 8db0fe b9d0f9 dddcdc f4c5ad f49a7b de614d b40426";

export interface Colormap {
  lowest: number;
  highest: number;
  stops: number[][]; // red, green and blue, evenly spaced
}

const stopsOf = (text: string): number[][] =>
  text.split(" ").map((stop) => [0, 2, 4].map((start) => Number.parseInt(stop.slice(start, start + 2), 16)));

/** For heatmaps in [0, 1], or in [-1, 1] where the graph was exported without ReLU. */
export const colormap = (signed: boolean): Colormap =>
  signed
    ? { lowest: -1, highest: 1, stops: stopsOf(COOL_WARM) }
    : { lowest: 0, highest: 1, stops: stopsOf(INFERNO) };

export function colour({ lowest, highest, stops }: Colormap, value: number): number[] {
  const share = Math.min(1, Math.max(0, (value - lowest) / (highest - lowest)));
  const place = share * (stops.length - 1);
  const below = Math.min(Math.floor(place), stops.length - 2);
  const [from, to] = [stops[below]!, stops[below + 1]!];
  return from.map((start, channel) => Math.round(start + (to[channel]! - start) * (place - below)));
}

/** The whole scale from left to right, as CSS. */
export const gradient = ({ stops }: Colormap): string =>
  `linear-gradient(to right, ${stops.map((stop) => `rgb(${stop.join(" ")})`).join(", ")})`;
