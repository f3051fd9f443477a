// Draws what the model saw and, on a canvas above it, the heatmap. Its opacity is CSS: the slider redraws nothing.

import { type Colormap, colour } from "./colormap.ts";
import type { Region } from "./preprocess.ts";
import type { Explanation } from "./protocol.ts";

// sharp on a dense screen, and small enough to draw at once
const LONGEST_SIDE = 960;

/** The part of the picture that the model saw, from the original pixels, with the border that the model saw, too. */
export function drawPicture(canvas: HTMLCanvasElement, bitmap: ImageBitmap, region: Region, fill: number[]): void {
  const scale = LONGEST_SIDE / Math.max(region.width, region.height);
  canvas.width = Math.round(region.width * scale);
  canvas.height = Math.round(region.height * scale);
  canvas.parentElement?.style.setProperty("--ratio", String(canvas.width / canvas.height));
  const context = contextOf(canvas);
  const [across, down] = [canvas.width / region.width, canvas.height / region.height];
  context.fillStyle = `rgb(${[0, 1, 2].map((channel) => fill[channel] ?? fill[0]).join(" ")})`;
  context.fillRect(0, 0, canvas.width, canvas.height);
  const place = [-region.left * across, -region.top * down, bitmap.width * across, bitmap.height * down] as const;
  // transparent parts show white, as the model sees them
  context.fillStyle = "white";
  context.fillRect(...place);
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, ...place);
}

export function drawHeatmap(
  canvas: HTMLCanvasElement,
  { heatmap, width, height }: Pick<Explanation, "heatmap" | "width" | "height">,
  colours: Colormap,
): void {
  canvas.width = width;
  canvas.height = height;
  const image = new ImageData(width, height);
  heatmap.forEach((value, index) => image.data.set([...colour(colours, value), 255], index * 4));
  contextOf(canvas).putImageData(image, 0, 0);
}

function contextOf(canvas: HTMLCanvasElement): CanvasRenderingContext2D {
  const context = canvas.getContext("2d");
  if (!context) throw new Error("This browser has no canvas.");
  return context;
}
