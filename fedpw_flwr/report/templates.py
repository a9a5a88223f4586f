"""The pages' Jinja2 templates: in Python, because the bundle of `flwr run` takes no HTML files."""

from __future__ import annotations

BASE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
{% if refresh %}<meta http-equiv="refresh" content="{{ refresh }}">
{% endif %}
<title>{{ title }}</title>
<link rel="icon" href="data:,">
<style>
:root { color-scheme: light dark; --back: #f6f7f9; --card: #fff; --ink: #1c2127; --soft: #5b6570; --rule: #e1e5ea;
  --bar: #d5e6f3; --bad: #a4262c; --good: #0b6b4b;
  --c0: #0072b2; --c1: #d55e00; --c2: #009e73; --c3: #b8558f; --c4: #b87800; --c5: #2a93cf; }
@media (prefers-color-scheme: dark) { :root { --back: #111418; --card: #1a1f25; --ink: #e8ebee; --soft: #9aa5b1;
  --rule: #2d343c; --bar: #1f4561; --bad: #ff8a80; --good: #5fd3a5;
  --c0: #4fa8e0; --c1: #ff8b47; --c2: #2fc493; --c3: #e48fc0; --c4: #f0b23e; --c5: #8fd0f7; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1240px; padding: 20px 14px 40px; background: var(--back); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.35rem; margin: 0; overflow-wrap: anywhere; } h2 { font-size: 1rem; margin: 0 0 2px; }
p { margin: 0; } .soft { color: var(--soft); font-size: .86rem; }
.grid { display: grid; gap: 12px; margin-top: 12px; grid-template-columns: repeat(auto-fit, minmax(min(100%, 350px), 1fr)); }
.tiles { grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); }
.card { margin: 12px 0 0; background: var(--card); border: 1px solid var(--rule); border-radius: 10px; padding: 12px 14px; min-width: 0; }
.tiles b { display: block; font-size: 1.45rem; line-height: 1.25; font-variant-numeric: tabular-nums; }
main p, main ul { margin: 8px 0; } main h2 { margin: 34px 0 10px; padding-top: 14px; border-top: 1px solid var(--rule); font-size: 1.15rem; }
main h3 { margin: 26px 0 6px; font-size: 1rem; } img { display: block; max-width: min(100%, 880px); margin-top: 22px; border-radius: 8px; }
.grid > * { margin: 0; } progress { width: 100%; height: 10px; margin-top: 8px; accent-color: var(--c0); }
.good { color: var(--good); } .bad { color: var(--bad); white-space: pre-wrap; overflow-wrap: anywhere; }
svg { display: block; width: 100%; height: auto; }
svg text { font-size: 12px; fill: var(--soft); } svg .name { fill: var(--ink); }
path { fill: none; stroke: var(--soft); stroke-width: 2; stroke-linecap: round; stroke-linejoin: round; }
.grid-line { stroke: var(--rule); stroke-width: 1; } .level { stroke: var(--soft); stroke-width: 1; stroke-dasharray: 4 4; }
.c0 { stroke: var(--c0); } .c1 { stroke: var(--c1); } .c2 { stroke: var(--c2); }
.c3 { stroke: var(--c3); } .c4 { stroke: var(--c4); } .c5 { stroke: var(--c5); }
.ink { stroke: var(--ink); } .bold { stroke-width: 2.8; } .dash { stroke-dasharray: 5 4; } .thin { stroke-width: .8; opacity: .45; }
.scroll { overflow: auto; max-height: 30rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .88rem; }
th, td { padding: 4px 10px 4px 0; text-align: right; border-bottom: 1px solid var(--rule); white-space: nowrap; }
th { white-space: normal; position: sticky; top: 0; background: var(--card); color: var(--soft); font-weight: 600; }
th:first-child, td:first-child, .text { text-align: left; } .note { white-space: pre-wrap; overflow-wrap: anywhere; text-align: left; }
dl { margin: 4px 0 0; columns: 260px; } dl div { display: flex; justify-content: space-between; gap: 10px; break-inside: avoid; }
dt { overflow-wrap: anywhere; } dd { margin: 0; font-variant-numeric: tabular-nums; }
summary { cursor: pointer; font-weight: 600; } pre { overflow: auto; font-size: .8rem; margin: 8px 0 0; }
</style>
</head>
<body>
{% block body %}
{{ body }}
{% endblock %}
</body>
</html>
"""

RUN = """\
{% extends "base.html" %}
{% block body %}
<header class="card">
<h1>{{ run.title }}</h1>
<p>Round <b>{{ run.last }}</b>{% if run.total %} of {{ run.total }}{% endif %}
{% if not run.ending and typical and run.total %} · about {{ left }} left{% endif %}
{% if typical %} · {{ "%.1f"|format(typical) }} s a round{% endif %}</p>
{% if run.total %}<progress value="{{ run.last }}" max="{{ run.total }}"></progress>
{% endif %}
{% if run.waiting %}<p>{{ run.waiting }}</p>
{% endif %}
{% if run.ending %}<p class="{{ 'bad' if run.failed else 'soft' if run.ending.startswith('Interrupted') else 'good' }}">{{ run.ending }}</p>
{% endif %}
<p class="soft">Written {{ written }}{% if not run.ending %}, again after each round; this page reloads itself{% endif %}.</p>
{% if not run.ending %}<p class="bad" id="silence"></p>
<script>
const minutes = Math.floor((Date.now() / 1000 - {{ written_at }}) / 60);
if (minutes >= {{ patience }}) silence.textContent = `Nothing was heard of this run for ${minutes} minutes: see whether it is still alive.`;
</script>
{% endif %}
</header>
{% if tiles %}
<section class="grid tiles">
{% for name, figure, about in tiles %}
<div class="card"><span class="soft">{{ name }}</span><b>{{ figure }}</b><span class="soft">{{ about }}</span></div>
{% endfor %}
</section>
{% endif %}
{% if charts %}
<section class="grid">
{% for chart in charts %}
<figure class="card">
<h2>{{ chart.title }}</h2>
<svg viewBox="0 0 {{ chart.width }} {{ chart.height }}" role="img" aria-label="{{ chart.title }} by round">
{% for height, text in chart.ticks %}
<path class="grid-line" d="M{{ chart.left }} {{ height }}H{{ chart.right }}"/><text x="{{ chart.left - 6 }}" y="{{ height + 4 }}" text-anchor="end">{{ text }}</text>
{% endfor %}
<text x="{{ (chart.left + chart.right) / 2 }}" y="{{ chart.height - 6 }}" text-anchor="middle">round</text>
{% for place, text in chart.rounds %}
<text x="{{ place }}" y="{{ chart.height - 6 }}" text-anchor="middle">{{ text }}</text>
{% endfor %}
{% for path, look in chart.paths %}
<path class="{{ look }}" d="{{ path }}"/>
{% endfor %}
{% for height, text, look in chart.labels %}
<path class="{{ look }}" d="M{{ chart.right + 8 }} {{ height }}h10"/><text class="name" x="{{ chart.right + 23 }}" y="{{ height + 4 }}">{{ text }}</text>
{% endfor %}
</svg>
{% if chart.note %}<p class="soft">{{ chart.note }}</p>
{% endif %}
</figure>
{% endfor %}
</section>
{% endif %}
{% if clients.rows %}
<section class="card">
<h2>Clients, as last seen</h2>
<p class="soft">1 × is an equal share of the round.</p>
<div class="scroll"><table>
<tr><th>client</th>{% if run.groups %}<th class="text">of</th>{% endif %}{% for name, unit in clients.headings.items() %}<th>{{ name }} {{ unit }}</th>{% endfor %}<th>last round</th></tr>
{% for client, group, figures, seen in clients.rows %}
<tr><td>{{ client }}</td>{% if run.groups %}<td class="text">{{ group }}</td>{% endif %}
{% for name in clients.headings %}<td>{{ "%.3g"|format(figures[name]) if name in figures else "–" }}</td>{% endfor %}
<td>{% if seen == run.last %}{{ seen }}{% else %}<b>{{ seen }}</b>{% endif %}</td></tr>
{% endfor %}
</table></div>
</section>
{% endif %}
<section class="card">
<h2>What the log warned of</h2>
{% if run.notes %}
<p class="soft">Who was set aside, bounded, silent or away, and why. The newest first; the log has more.</p>
<div class="scroll"><table>
<tr><th>round</th><th class="text">what</th></tr>
{% for number, text in run.notes|reverse %}
<tr><td>{{ number }}</td><td class="note">{{ text }}</td></tr>
{% endfor %}
</table></div>
{% else %}
<p class="soft">Nothing: every reply could be used, and nobody was silent or away.</p>
{% endif %}
</section>
{% if scalars %}
<section class="card">
<h2>Other figures, as last seen</h2>
<dl>
{% for name, value in scalars.items() %}
<div><dt>{{ name.replace("fedpw-", "") }}</dt><dd>{{ "%.4g"|format(value) }}</dd></div>
{% endfor %}
</dl>
</section>
{% endif %}
<section class="card">
<details{% if not run.settings %} open{% endif %}><summary>Settings and versions</summary>
<p class="soft">{% for name, version in run.versions.items() if version %}{{ name }} {{ version }}{{ "" if loop.last else ", " }}{% endfor %}</p>
{% if run.settings %}<pre>{{ run.settings }}</pre>{% endif %}
</details>
</section>
<script type="application/json">{{ kept|tojson }}</script>
{% endblock %}
"""
