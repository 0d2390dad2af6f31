// Names beside the points of a chart, placed so that none covers another one or a point.

const LABEL_FONT = 12;
const LABEL_RINGS = [20, 30, 43, 58, 78, 100];
const LABEL_TURNS = 16;
const MARKER_ROOM = 9; // half of what a point takes, in pixels
let measuringContext = null;

function textWidth(text) {
  measuringContext ??= document.createElement("canvas").getContext("2d");
  measuringContext.font = `${LABEL_FONT}px ${getComputedStyle(document.body).fontFamily}`;
  return measuringContext.measureText(text).width;
}

const overlap = (a, b) => a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom;

// Where the names of points go: for each its middle and whether a line leads to it, or null where there
// is no room. Places are tried from near to far, from above and then around; those that a bar goes
// or a line goes through count only where there is no other. The same points always get the same places.
function labelPlaces(points, lines, width, height) {
  const taken = points.map(({ x, y }) => ({ left: x - MARKER_ROOM, right: x + MARKER_ROOM, top: y - MARKER_ROOM, bottom: y + MARKER_ROOM }));
  const bars = points.flatMap(({ x, y, barX, barY }) => [
    { left: x - barX, right: x + barX, top: y - 1, bottom: y + 1 }, { left: x - 1, right: x + 1, top: y - barY, bottom: y + barY },
  ]);
  return points.map((point) => {
    const found = freePlace(point, [...taken, ...bars, ...lines], width, height) || freePlace(point, taken, width, height);
    if (found) taken.push(found.box);
    return found;
  });
}

function freePlace({ x, y, text }, obstacles, width, height) {
  const half = textWidth(text) / 2 + 4, rise = LABEL_FONT * 0.75 + 1;
  for (const [ring, distance] of LABEL_RINGS.entries()) {
    for (let turn = 0; turn < LABEL_TURNS; turn += 1) {
      // Alternately to the right and to the left of straight up.
      const angle = ((turn % 2 ? 1 : -1) * Math.ceil(turn / 2) * 2 * Math.PI) / LABEL_TURNS;
      const middle = { x: x + Math.sin(angle) * (distance + half - LABEL_FONT / 2), y: y - Math.cos(angle) * distance };
      const box = { left: middle.x - half, right: middle.x + half, top: middle.y - rise, bottom: middle.y + rise };
      const isOutside = box.left < 0 || box.right > width || box.top < 0 || box.bottom > height;
      if (!isOutside && !obstacles.some((other) => overlap(box, other))) return { ...middle, box, hasLine: ring > 0 };
    }
  }
  return null;
}

// A line from point to point, as small boxes along it.
function lineBoxes(corners) {
  return corners.slice(1).flatMap(([x, y], number) => {
    const [fromX, fromY] = corners[number];
    const count = Math.ceil(Math.hypot(x - fromX, y - fromY) / 5);
    if (!Number.isFinite(count)) return []; // a gap
    return Array.from({ length: count }, (_, place) => {
      const middleX = fromX + ((x - fromX) * place) / count, middleY = fromY + ((y - fromY) * place) / count;
      return { left: middleX - 2, right: middleX + 2, top: middleY - 2, bottom: middleY + 2 };
    });
  });
}

// Name the points of a chart that is drawn: `points` have values x and y with their errors and a text,
// and come in the order of their importance; the chart's first trace is the line that joins some.
function nameData(box, points) {
  const { _size: size, xaxis, yaxis } = box._fullLayout;
  const found = points.map((point) => {
    const x = xaxis.d2p(point.x), y = yaxis.d2p(point.y);
    return { x, y, text: point.text, barX: Math.abs(xaxis.d2p(point.x + point.errorX) - x), barY: Math.abs(yaxis.d2p(point.y + point.errorY) - y) };
  });
  const isInside = ({ x, y }) => x >= 0 && x <= size.w && y >= 0 && y <= size.h;
  const inside = found.filter(isInside);
  const joined = box.data[0].x.map((x, place) => (x === null || x === undefined ? [NaN, NaN] : [xaxis.d2p(x), yaxis.d2p(box.data[0].y[place])]));
  const places = labelPlaces(inside, lineBoxes(joined), size.w, size.h);
  const annotations = inside.flatMap((point, number) => {
    const place = places[number];
    if (!place) return [];
    return [{
      x: points[found.indexOf(point)].x, y: points[found.indexOf(point)].y, ax: place.x - point.x, ay: place.y - point.y,
      text: plotText(point.text), font: { size: LABEL_FONT, color: cssColour("--muted") }, borderpad: 0, showarrow: true, arrowhead: 0, arrowwidth: 1, standoff: 8,
      arrowcolor: place.hasLine ? cssColour("--strong-line") : "rgba(0,0,0,0)", captureevents: false,
    }];
  });
  return Plotly.relayout(box, { annotations });
}
