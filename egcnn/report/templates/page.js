"use strict";
// Unpacks the volumes of a case, which are images of all axial slices, and draws any plane of them.
const page = JSON.parse(document.getElementById("volumes").textContent);

function unpack(packed) {
  return new Promise((resolve, reject) => {
    const image = new Image();
    image.onerror = () => reject(new Error("an image of the page is damaged"));
    image.onload = () => {
      const canvas = document.createElement("canvas");
      canvas.width = image.width;
      canvas.height = image.height;
      const context = canvas.getContext("2d", { willReadFrequently: true });
      context.drawImage(image, 0, 0);
      const pixels = context.getImageData(0, 0, image.width, image.height).data;
      resolve({ ...packed, pixels, width: image.width });
    };
    image.src = packed.src;
  });
}

// Index of the first of the four bytes of a voxel. A coarse volume has fewer voxels than the case.
function place(volume, voxel, shape) {
  const [x, y, z] = voxel.map((v, axis) => Math.floor((v * volume.shape[axis]) / shape[axis]));
  const column = (z % volume.columns) * volume.shape[0] + x;
  const row = Math.floor(z / volume.columns) * volume.shape[1] + y;
  return 4 * (row * volume.width + column);
}

function draw(canvas, shown, image, panel, axes, slice) {
  const [across, down, fixed] = axes;
  const columns = shown.shape[across];
  const rows = shown.shape[down];
  canvas.width = columns;
  canvas.height = rows;
  const context = canvas.getContext("2d");
  const picture = context.createImageData(columns, rows);
  const voxel = [0, 0, 0];
  voxel[fixed] = slice;
  for (let row = 0, to = 0; row < rows; row++) {
    voxel[down] = rows - 1 - row;
    for (let column = 0; column < columns; column++, to += 4) {
      voxel[across] = columns - 1 - column;
      let base = [0, 0, 0];
      if (panel.over) {
        const shade = image.pixels[place(image, voxel, shown.shape)];
        base = [shade, shade, shade];
      }
      if (panel.heat) {
        base = page.heat[panel.heat.pixels[place(panel.heat, voxel, shown.shape)]];
      }
      let opacity = 0;
      let from = 0;
      if (panel.codes) {
        from = place(panel.codes, voxel, shown.shape);
        opacity = panel.codes.pixels[from + 3] ? (panel.over ? page.opacity : 1) : 0;
      }
      for (let channel = 0; channel < 3; channel++) {
        const colour = opacity ? panel.codes.pixels[from + channel] : 0;
        picture.data[to + channel] = (1 - opacity) * base[channel] + opacity * colour;
      }
      picture.data[to + 3] = 255;
    }
  }
  context.putImageData(picture, 0, 0);
}

async function open(details) {
  const shown = page.cases[Number(details.dataset.case)];
  const image = await unpack(shown.image);
  const panels = await Promise.all(
    shown.panels.map(async (panel) => ({
      ...panel,
      codes: panel.codes && (await unpack(panel.codes)),
      heat: panel.heat && (await unpack(panel.heat)),
    })),
  );
  for (const plane of details.querySelectorAll(".plane")) {
    const axes = page.planes[plane.dataset.plane];
    const slider = plane.querySelector("input");
    const show = () => {
      const slice = Number(slider.value);
      plane.querySelector("output").textContent = `slice ${slice + 1} of ${shown.shape[axes[2]]}`;
      plane.querySelectorAll("canvas").forEach((canvas, number) => {
        draw(canvas, shown, image, panels[number], axes, slice);
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
