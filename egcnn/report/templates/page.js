"use strict";
// Unpacks the volumes of a case, which are images of all axial slices, and draws any plane of them.
const page = JSON.parse(document.getElementById("volumes").textContent);

// A voxel's first byte in the pixels is the sum of three steps, one for its place along each axis.
// A coarse volume has fewer voxels than the case, of the given shape.
function unpack(packed, shape) {
  return new Promise((resolve, reject) => {
    const image = new Image();
    image.onerror = () => reject(new Error("an image of the page is damaged"));
    image.onload = () => {
      const canvas = document.createElement("canvas");
      canvas.width = image.width;
      canvas.height = image.height;
      const context = canvas.getContext("2d", { willReadFrequently: true });
      context.drawImage(image, 0, 0);
      const [x, y] = packed.shape;
      const offset = [
        (place) => place,
        (place) => place * image.width,
        (place) =>
          Math.floor(place / packed.columns) * y * image.width + (place % packed.columns) * x,
      ];
      const steps = shape.map((size, axis) =>
        Int32Array.from({ length: size }, (_, place) =>
          4 * offset[axis](Math.floor((place * packed.shape[axis]) / size)),
        ),
      );
      resolve({ steps, pixels: context.getImageData(0, 0, image.width, image.height).data });
    };
    image.src = packed.src;
  });
}

function draw(canvas, shape, image, panel, axes, slice) {
  const [across, down, fixed] = axes;
  const columns = shape[across];
  const rows = shape[down];
  canvas.width = columns;
  canvas.height = rows;
  const context = canvas.getContext("2d");
  const picture = context.createImageData(columns, rows);
  const ground = panel.heat || (panel.over ? image : null);
  const over = panel.codes;
  const opacity = panel.over ? page.opacity : 1;
  // The patient's right, or the front, is on the left; the front, or the top, above.
  const place = (volume, row, column) =>
    volume.steps[fixed][slice] +
    volume.steps[down][rows - 1 - row] +
    volume.steps[across][columns - 1 - column];
  for (let row = 0, to = 0; row < rows; row++) {
    for (let column = 0; column < columns; column++, to += 4) {
      const shade = ground ? ground.pixels[place(ground, row, column)] : 0;
      const colour = over ? place(over, row, column) : 0;
      const covered = over && over.pixels[colour + 3] ? opacity : 0;
      for (let channel = 0; channel < 3; channel++) {
        let value = (1 - covered) * (panel.heat ? page.heat[shade][channel] : shade);
        if (covered) value += covered * over.pixels[colour + channel];
        picture.data[to + channel] = value;
      }
      picture.data[to + 3] = 255;
    }
  }
  context.putImageData(picture, 0, 0);
}

async function open(details) {
  const shown = page.cases[Number(details.dataset.case)];
  const image = await unpack(shown.image, shown.shape);
  const panels = await Promise.all(
    shown.panels.map(async (panel) => ({
      ...panel,
      codes: panel.codes && (await unpack(panel.codes, shown.shape)),
      heat: panel.heat && (await unpack(panel.heat, shown.shape)),
    })),
  );
  for (const plane of details.querySelectorAll(".plane")) {
    const axes = page.planes[plane.dataset.plane];
    const slider = plane.querySelector("input");
    const show = () => {
      const slice = Number(slider.value);
      plane.querySelector("output").textContent = `slice ${slice + 1} of ${shown.shape[axes[2]]}`;
      plane.querySelectorAll("canvas").forEach((canvas, number) => {
        draw(canvas, shown.shape, image, panels[number], axes, slice);
      });
    };
    slider.addEventListener("input", show);
    show();
  }
  details.dataset.ready = "yes";
}

for (const details of document.querySelectorAll("details.case")) {
  const once = () => {
    if (details.open && !details.dataset.ready) {
      details.dataset.ready = "opening";
      open(details);
    }
  };
  details.addEventListener("toggle", once);
  once();
}
