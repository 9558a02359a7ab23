// The value under the pointer. The page says the same in its tables, and works without this.
"use strict";
for (const figure of document.querySelectorAll("figure[data-points]")) {
  const points = JSON.parse(figure.dataset.points);
  const svg = figure.querySelector("svg");
  const spot = document.createElement("div"), hint = document.createElement("div");
  spot.className = "spot"; hint.className = "hint"; spot.hidden = hint.hidden = true;
  figure.append(spot, hint);
  const hide = () => { spot.hidden = hint.hidden = true; };
  const show = (event) => {
    const box = svg.getBoundingClientRect(), scale = box.width / svg.viewBox.baseVal.width;
    const x = (event.clientX - box.left) / scale, y = (event.clientY - box.top) / scale;
    let nearest = null, least = 24 / scale;
    for (const point of points) {
      const distance = Math.hypot(point[0] - x, point[1] - y);
      if (distance < least) { nearest = point; least = distance; }
    }
    if (!nearest) return hide();
    spot.style.left = `${nearest[0] * scale}px`; spot.style.top = hint.style.top = `${nearest[1] * scale}px`;
    hint.textContent = nearest[2];
    spot.hidden = hint.hidden = false;
    const half = hint.offsetWidth / 2;
    hint.style.left = `${Math.min(Math.max(nearest[0] * scale, half), Math.max(half, figure.clientWidth - half))}px`;
  };
  svg.addEventListener("pointermove", show);
  svg.addEventListener("pointerdown", show);
  svg.addEventListener("pointerleave", hide);
}
