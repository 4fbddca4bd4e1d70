// The report for a browser: the figures as JSON and a script that draws them as SVG. The policy in
// its head lets it load nothing from anywhere.
#include "tools/nexus-tune/report.h"

namespace nexus::tune {

namespace {

constexpr const char* kHead = R"html(<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>nexus-tune</title>
<style>
 body { font: 14px/1.45 system-ui, sans-serif; margin: 1.5em auto; max-width: 76em; padding: 0 1em; color: #1b2733; background: #fff }
 h1 { font-size: 1.4em } h2 { font-size: 1.2em; border-bottom: 1px solid #ccd; margin-top: 1.6em } h3 { font-size: 1em; margin: .8em 0 .3em }
 .charts { display: flex; flex-wrap: wrap; gap: 1em } figure { margin: 0 } figcaption { font-size: 12px; color: #456; margin: .2em 0 }
 table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 12px } td, th { white-space: nowrap; padding: .15em .6em; text-align: right; border-bottom: 1px solid #e4e8ee }
 td:last-child, th:last-child { text-align: left } tr.best td { font-weight: 600; background: #e8f5e9 }
 text { font: 11px system-ui, sans-serif; fill: #1b2733 } .off { color: #8a4b00 } .best-line { font-size: 1.05em }
</style></head><body>
<h1>nexus-tune</h1><div id="report"></div>
<noscript>This report is drawn by a script.</noscript>
<script id="data" type="application/json">)html";

constexpr const char* kScript = R"html(</script>
<script>
'use strict';
const NS = 'http://www.w3.org/2000/svg';
const el = (parent, name, text, cls) => { const e = document.createElement(name); if (text !== undefined) e.textContent = text; if (cls) e.className = cls; parent.appendChild(e); return e; };
const svg = (parent, name, attributes, text) => { const e = document.createElementNS(NS, name); for (const k in attributes) e.setAttribute(k, attributes[k]); if (text !== undefined) e.textContent = text; parent.appendChild(e); return e; };
const size = b => b % 1048576 === 0 ? b / 1048576 + ' MiB' : b / 1024 + ' KiB';
const time = us => us >= 1e6 ? (us / 1e6).toPrecision(3) + ' s' : us >= 1000 ? (us / 1000).toPrecision(3) + ' ms' : us.toPrecision(3) + ' \u00b5s';
const sorted = values => [...new Set(values)].sort((a, b) => a - b);
const kind = p => (p.direct ? 'direct' : 'buffered') + (p.registered ? ', registered' : '') + (p.iopoll ? ', IOPOLL' : '') + (p.sqpoll ? ', SQPOLL' : '');
const mode = p => (p.overlap ? 'overlapped' : 'sequential') + ', ' + (p.single_submit ? 'single submit' : 'batched') + ', ' + p.threads + (p.threads === 1 ? ' thread, ' : ' threads, ') + kind(p);
const same = (a, b) => b && ['block_size', 'queue_depth', 'threads', 'overlap', 'single_submit', 'direct', 'registered', 'iopoll', 'sqpoll'].every(k => a[k] === b[k]);
const colour = x => 'hsl(' + (215 - 75 * x) + ',' + (45 + 20 * x) + '%,' + (92 - 50 * x) + '%)';
const palette = ['#1565c0', '#c62828', '#2e7d32', '#6a1b9a', '#ef6c00', '#00838f', '#5d4037'];

function heatMap(parent, title, points, most, best) {
  const depths = sorted(points.map(p => p.queue_depth)), blocks = sorted(points.map(p => p.block_size));
  const w = 58, h = 30, left = 62, top = 22;
  const figure = el(parent, 'figure'); el(figure, 'figcaption', title + ' (GB/s)');
  const root = svg(figure, 'svg', {width: Math.max(left + w * depths.length + 4, 300), height: top + h * blocks.length + 20, 'class': 'heat', role: 'img'});
  depths.forEach((d, i) => svg(root, 'text', {x: left + w * i + w / 2, y: top - 7, 'text-anchor': 'middle'}, d));
  svg(root, 'text', {x: left, y: top + h * blocks.length + 14}, 'queue depth across, block size down');
  blocks.forEach((b, j) => {
    svg(root, 'text', {x: left - 6, y: top + h * j + 19, 'text-anchor': 'end'}, size(b));
    depths.forEach((d, i) => {
      const p = points.find(q => q.block_size === b && q.queue_depth === d);
      if (!p) return;
      const x = p.throughput_gbps / most;
      const cell = svg(root, 'rect', {x: left + w * i, y: top + h * j, width: w - 2, height: h - 2, fill: colour(x), stroke: same(p, best) ? '#d50000' : 'none', 'stroke-width': 2});
      svg(cell, 'title', {}, mode(p) + ': ' + p.throughput_gbps.toFixed(3) + ' GB/s, p99 ' + time(p.complete_us.p99));
      svg(root, 'text', {x: left + w * i + w / 2 - 1, y: top + h * j + 19, 'text-anchor': 'middle', style: x > .75 ? 'fill:#fff' : ''}, p.throughput_gbps.toFixed(2));
    });
  });
}

function curves(parent, title, points, value) {
  const blocks = sorted(points.map(p => p.block_size)), depths = sorted(points.map(p => p.queue_depth));
  const values = points.map(value).filter(v => v > 0);
  if (depths.length < 2 || !values.length) return;
  const W = 430, H = 240, left = 58, right = 70, top = 10, bottom = 34;
  const low = Math.floor(Math.log10(Math.min(...values))), high = Math.max(low + 1, Math.ceil(Math.log10(Math.max(...values))));
  const x = d => left + (W - left - right) * Math.log2(d / depths[0]) / Math.log2(depths[depths.length - 1] / depths[0]);
  const y = v => top + (H - top - bottom) * (high - Math.log10(v)) / (high - low);
  const figure = el(parent, 'figure'); el(figure, 'figcaption', title);
  const root = svg(figure, 'svg', {width: W, height: H, 'class': 'curve', role: 'img'});
  for (let e = low; e <= high; ++e) {
    svg(root, 'line', {x1: left, x2: W - right, y1: y(10 ** e), y2: y(10 ** e), stroke: '#dde3ea'});
    svg(root, 'text', {x: left - 6, y: y(10 ** e) + 4, 'text-anchor': 'end'}, time(10 ** e));
  }
  depths.forEach(d => svg(root, 'text', {x: x(d), y: H - bottom + 15, 'text-anchor': 'middle'}, d));
  svg(root, 'text', {x: (left + W - right) / 2, y: H - 4, 'text-anchor': 'middle'}, 'queue depth');
  blocks.forEach((b, i) => {
    const line = points.filter(p => p.block_size === b && value(p) > 0).sort((p, q) => p.queue_depth - q.queue_depth);
    if (!line.length) return;
    svg(root, 'polyline', {points: line.map(p => x(p.queue_depth) + ',' + y(value(p))).join(' '), fill: 'none', stroke: palette[i % palette.length], 'stroke-width': 1.6});
    line.forEach(p => svg(svg(root, 'circle', {cx: x(p.queue_depth), cy: y(value(p)), r: 2.6, fill: palette[i % palette.length]}), 'title', {}, size(b) + ' x ' + p.queue_depth + ': ' + time(value(p))));
    svg(root, 'text', {x: W - right + 8, y: top + 12 + 15 * i, style: 'fill:' + palette[i % palette.length]}, size(b));
  });
}

function direction(parent, name, result) {
  el(parent, 'h2', name);
  const points = result.points.filter(p => p.runs_gbps.length), best = result.best;
  if (!points.length) { el(parent, 'p', 'nothing was measured', 'off'); return; }
  if (best) el(parent, 'p', 'Best: ' + size(best.block_size) + ' \u00d7 ' + best.queue_depth + ', ' + mode(best) + ': ' + best.throughput_gbps.toFixed(2) + ' GB/s, ' + best.cpu_s_per_gb.toFixed(3) + ' CPU s/GB' + (result.interrupted ? ' (interrupted)' : ''), 'best-line');
  const most = Math.max(...points.map(p => p.throughput_gbps)), modes = new Map();
  points.forEach(p => { const m = mode(p); if (!modes.has(m)) modes.set(m, []); modes.get(m).push(p); });
  el(parent, 'h3', 'Throughput by submission mode');
  let charts = el(parent, 'div', undefined, 'charts');
  modes.forEach((list, m) => heatMap(charts, m, list, most, best));
  el(parent, 'h3', 'Latency of one request');
  charts = el(parent, 'div', undefined, 'charts');
  modes.forEach((list, m) => {
    if (list[0].threads !== 1 || list[0].single_submit || kind(list[0]) !== kind(best || points[0])) return;
    curves(charts, m + ': completion, p50', list, p => p.complete_us.p50);
    curves(charts, m + ': completion, p99', list, p => p.complete_us.p99);
    curves(charts, m + ': submit, p99', list, p => p.submit_us.p99);
  });
  el(parent, 'h3', 'All points');
  const table = el(parent, 'table'), head = el(table, 'tr');
  ['GB/s', 'runs', 'spread', 'CPU s/GB', 'submit p50', 'p99', 'max', 'completion p50', 'p99', 'max', 'in flight', 'configuration'].forEach(t => el(head, 'th', t));
  [...points].sort((a, b) => b.throughput_gbps - a.throughput_gbps).forEach(p => {
    const row = el(table, 'tr', undefined, same(p, best) ? 'best' : '');
    [p.throughput_gbps.toFixed(3), p.runs_gbps.length, (100 * p.spread).toFixed(1) + ' %', p.cpu_s_per_gb.toFixed(3), time(p.submit_us.p50), time(p.submit_us.p99), time(p.submit_us.max),
     time(p.complete_us.p50), time(p.complete_us.p99), time(p.complete_us.max), size(p.memory_bytes), size(p.block_size) + ' \u00d7 ' + p.queue_depth + ', ' + mode(p)].forEach(t => el(row, 'td', t));
  });
}

const parent = document.getElementById('report');
JSON.parse(document.getElementById('data').textContent).forEach(r => {
  el(parent, 'p', r.zone + ' on ' + r.device + ', kernel ' + r.kernel + ', ' + r.measured_at + ', ' + (r.full ? 'full sweep' : 'guided search') + ', test file ' + size(r.file_bytes));
  r.notes.forEach(note => el(parent, 'p', 'Note: ' + note, 'off'));
  r.fast_paths.filter(f => !f.on).forEach(f => el(parent, 'p', 'Off: ' + f.name + ': ' + f.reason + '. ' + f.remedy + '.', 'off'));
  if (r.read) direction(parent, 'Reads', r.read);
  if (r.write) direction(parent, 'Writes', r.write);
});
document.body.dataset.drawn = document.querySelectorAll('svg').length;
</script></body></html>
)html";

}  // namespace

std::string report_html(const std::vector<Report>& reports) {
  Json data = Json::array();
  for (const Report& report : reports) {
    Json one = report_json(report);
    one["kernel"] = report.device.kernel;
    one["measured_at"] = report.measured_at;
    one["file_bytes"] = report.file_bytes;
    one["full"] = report.full;
    one["notes"] = report.notes;
    one["fast_paths"] = fast_paths_json(report.fast_paths);
    data.push_back(std::move(one));
  }
  const std::string json = data.dump(-1, ' ', true, Json::error_handler_t::replace);
  std::string safe;  // "</script>" in a name would end the data
  safe.reserve(json.size());
  for (const char c : json) safe += c == '<' ? std::string("\\u003c") : std::string(1, c);
  return kHead + safe + kScript;
}

}  // namespace nexus::tune
