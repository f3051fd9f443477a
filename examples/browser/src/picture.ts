// From an image file to pixels, as camkit/images.py reads it: upright, on white, without colour management.

const SMALLEST_SIDE = 2;

export async function decode(file: Blob): Promise<ImageBitmap> {
  let bitmap: ImageBitmap;
  try {
    // EXIF turns the picture; a colour profile would change values that Pillow leaves as they are
    bitmap = await createImageBitmap(file, { imageOrientation: "from-image", colorSpaceConversion: "none" });
  } catch {
    throw new Error("is not an image that this browser can read");
  }
  if (Math.min(bitmap.width, bitmap.height) < SMALLEST_SIDE) {
    throw new Error(`is ${bitmap.width} x ${bitmap.height} pixels; it must be at least 2 x 2`);
  }
  return bitmap;
}

export function pixelsOf(bitmap: ImageBitmap): ImageData {
  const context = new OffscreenCanvas(bitmap.width, bitmap.height).getContext("2d", { willReadFrequently: true });
  if (!context) throw new Error("is too large for this browser");
  context.fillStyle = "white";
  context.fillRect(0, 0, bitmap.width, bitmap.height);
  context.drawImage(bitmap, 0, 0);
  return context.getImageData(0, 0, bitmap.width, bitmap.height);
}
