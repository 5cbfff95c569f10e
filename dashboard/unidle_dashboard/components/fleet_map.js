// Draws one cell per tile, grouped by node. All text from outside is set as textContent or fillText.
const GAP = 12, LABEL = 15, MOST_HEIGHT = 640, MOST_CELL = 26, LEAST_CELL = 3

export default function (component) {
  const { data, parentElement, setTriggerValue } = component
  const root = parentElement.querySelector(".map")
  if (!root || !data) return
  const map = root.unidleMap ?? (root.unidleMap = create(root))
  map.pick = node => setTriggerValue("picked", node)
  map.selected = data.selected
  unpack(data.packed).then(shown => {
    map.shown = shown
    draw(map)
  })
  return () => {
    map.observer.disconnect()
    delete root.unidleMap
  }
}

async function unpack(packed) {
  const stream = new Blob([bytes(packed)]).stream().pipeThrough(new DecompressionStream("deflate"))
  const shown = JSON.parse(await new Response(stream).text())
  shown.cells = bytes(shown.cells)
  shown.ramp = shown.scale ? ramp(shown.colours, shown.scale.top + 1) : shown.colours
  return shown
}

function bytes(base64) {
  return Uint8Array.from(atob(base64), character => character.charCodeAt(0))
}

function ramp(stops, steps) {
  const parsed = stops.map(hex => [1, 3, 5].map(at => parseInt(hex.slice(at, at + 2), 16)))
  return Array.from({ length: steps }, (_, step) => {
    const place = (step / (steps - 1)) * (parsed.length - 1)
    const left = Math.min(Math.floor(place), parsed.length - 2), share = place - left
    return `rgb(${parsed[left].map((low, i) => Math.round(low + share * (parsed[left + 1][i] - low))).join()})`
  })
}

function create(root) {
  const canvas = root.querySelector("canvas"), tip = root.querySelector(".tip")
  const map = { root, canvas, tip, shown: null, boxes: [], selected: "", pick: () => {} }
  map.observer = new ResizeObserver(() => draw(map))
  map.observer.observe(root)
  canvas.onmousemove = event => hover(map, event)
  canvas.onmouseleave = () => { tip.hidden = true }
  canvas.onclick = event => {
    const hit = find(map, event)
    if (hit) map.pick(map.shown.nodes[hit.node])
  }
  return map
}

// Largest cells with which all nodes fit into the height, as [cell, columns of a node, boxes].
function layout(counts, width) {
  for (let cell = MOST_CELL; cell >= LEAST_CELL; cell--) {
    const label = cell >= 12 ? LABEL : 0, gap = cell >= 12 ? GAP : Math.max(1, Math.round(cell / 3))
    const boxes = []
    let x = 0, y = 0, tallest = 0, first = 0
    counts.forEach((count, node) => {
      const columns = Math.max(1, Math.ceil(Math.sqrt(count * 2 - 1)))
      const wide = columns * cell, high = Math.ceil(count / columns) * cell + label
      if (x > 0 && x + wide > width) { x = 0; y += tallest + gap; tallest = 0 }
      boxes.push({ node, first, count, columns, x, y, wide, high, label })
      x += wide + gap
      tallest = Math.max(tallest, high)
      first += count
    })
    const height = y + tallest
    if (height <= MOST_HEIGHT || cell === LEAST_CELL) return { cell, boxes, height }
  }
}

function draw(map) {
  const { root, canvas, shown } = map
  const width = Math.floor(root.clientWidth)
  if (!shown || width < 20) return
  const { cell, boxes, height } = layout(shown.counts, width)
  const scale = window.devicePixelRatio || 1
  canvas.width = width * scale
  canvas.height = (height + 2) * scale
  canvas.style.width = `${width}px`
  canvas.style.height = `${height + 2}px`
  const style = getComputedStyle(root), paint = canvas.getContext("2d")
  paint.scale(scale, scale)
  const hatch = hatching(paint)
  const inner = cell >= 6 ? cell - 2 : cell >= 4 ? cell - 1 : cell
  for (const box of boxes) {
    if (box.label) {
      paint.fillStyle = style.color
      paint.globalAlpha = 0.75
      paint.font = `11px ${style.fontFamily}`
      paint.textBaseline = "top"
      paint.fillText(fitted(paint, shown.nodes[box.node], box.wide), box.x, box.y)
      paint.globalAlpha = 1
    }
    for (let i = 0; i < box.count; i++) {
      const value = shown.cells[box.first + i]
      const x = box.x + (i % box.columns) * cell
      const y = box.y + box.label + Math.floor(i / box.columns) * cell
      paint.fillStyle = value === shown.unknown ? hatch : shown.ramp[value]
      paint.fillRect(x, y, inner, inner)
      if (value === shown.failed && inner >= 8) cross(paint, x, y, inner)
    }
    if (shown.nodes[box.node] === map.selected) {
      paint.strokeStyle = style.color
      paint.lineWidth = 2
      paint.strokeRect(box.x - 2, box.y + box.label - 2, box.wide + 2, box.high - box.label + 2)
    }
  }
  map.boxes = boxes
  map.cell = cell
  root.dataset.drawn = String(shown.cells.length)
}

function hatching(paint) {
  const tile = document.createElement("canvas")
  tile.width = tile.height = 6
  const ink = tile.getContext("2d")
  ink.fillStyle = "rgba(154,165,177,.28)"
  ink.fillRect(0, 0, 6, 6)
  ink.strokeStyle = "#9AA5B1"
  ink.lineWidth = 1.4
  for (const shift of [-6, 0, 6]) {
    ink.beginPath()
    ink.moveTo(shift, 6)
    ink.lineTo(shift + 6, 0)
    ink.stroke()
  }
  return paint.createPattern(tile, "repeat")
}

function cross(paint, x, y, size) {
  const edge = size * 0.28
  paint.strokeStyle = "#FFFFFF"
  paint.lineWidth = 1.6
  paint.beginPath()
  paint.moveTo(x + edge, y + edge)
  paint.lineTo(x + size - edge, y + size - edge)
  paint.moveTo(x + size - edge, y + edge)
  paint.lineTo(x + edge, y + size - edge)
  paint.stroke()
}

function fitted(paint, text, width) {
  if (paint.measureText(text).width <= width) return text
  let end = text.length
  while (end > 1 && paint.measureText(text.slice(0, end) + "…").width > width) end--
  return text.slice(0, end) + "…"
}

function find(map, event) {
  const x = event.offsetX, y = event.offsetY
  for (const box of map.boxes) {
    if (x < box.x || x >= box.x + box.wide || y < box.y || y >= box.y + box.high) continue
    const row = Math.floor((y - box.y - box.label) / map.cell)
    const at = row < 0 ? -1 : row * box.columns + Math.floor((x - box.x) / map.cell)
    return { node: box.node, first: box.first, at: at < box.count ? at : -1 }
  }
  return null
}

function hover(map, event) {
  const hit = find(map, event), { tip, shown } = map
  map.canvas.style.cursor = hit ? "pointer" : "default"
  tip.hidden = !hit
  if (!hit) return
  const node = shown.nodes[hit.node], at = hit.first + hit.at
  tip.textContent = hit.at < 0 ? node : `${node}, ${shown.labels[at]}${valueText(shown, at)}`
  const left = Math.min(event.offsetX + 14, map.root.clientWidth - tip.offsetWidth)
  tip.style.left = `${Math.max(0, left)}px`
  tip.style.top = `${event.offsetY + 18}px`
}

function valueText({ scale, cells, unknown }, at) {
  if (!scale) return ""
  if (cells[at] === unknown) return `, ${scale.name} unknown`
  const value = scale.low + (cells[at] / scale.top) * (scale.high - scale.low)
  return `, ${scale.name} ${Math.round(value)} ${scale.unit}`
}
