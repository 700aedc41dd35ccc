# The report of scripts/bench-apps.sh: one row of bars for each cell, each bar the
# median ratio to plain TCP, its line the 95 % interval.
def colour: {sockaccel: "#1b6ca8", textbook: "#c8553d", unix: "#7a9e3a", again: "#999"}[.];
def shown: if . == "again" then "TCP again" else . end;
def width: [. , 3] | min * 200;
def bar($y):
	"<rect x=\"160\" y=\"\($y)\" width=\"\(.ratio.median | width)\" height=\"12\" fill=\"\(.mode | colour)\"/>" +
	"<line x1=\"\(160 + (.ratio.low | width))\" x2=\"\(160 + (.ratio.high | width))\" y1=\"\($y + 6)\" y2=\"\($y + 6)\" stroke=\"black\"/>" +
	"<text x=\"154\" y=\"\($y + 10)\" text-anchor=\"end\">\(.mode | shown)</text>" +
	"<text x=\"770\" y=\"\($y + 10)\">\([.ratio.median, .ratio.low, .ratio.high] | map(. * 100 | round / 100) | "\(.[0]) (\(.[1])-\(.[2]))")</text>";
def chart:
	[.modes[] | select(.ratio)] as $bars | ($bars | length * 16 + 4) as $height |
	"<svg width=\"900\" height=\"\($height)\" font-size=\"12\" font-family=\"sans-serif\">" +
	([range($bars | length) as $i | $bars[$i] | bar($i * 16 + 2)] | join("")) +
	"<line x1=\"360\" x2=\"360\" y1=\"0\" y2=\"\($height)\" stroke=\"black\" stroke-dasharray=\"3\"/></svg>";
"<!DOCTYPE html><meta charset=\"utf-8\"><title>sockaccel: real programs</title>
<body style=\"font-family: sans-serif; max-width: 60em; margin: 2em auto\">
<h1>Real programs, accelerated</h1>
<p>\(.sockaccel | @html), Linux \(.kernel | @html), \(.cpus) CPUs, --blocking-readers \(.blocking_readers).
Bars: median of the ratios to plain TCP of \(.rounds) interleaved rounds of \(.seconds) s; lines: 95 % interval; dashed: plain TCP.</p>",
(.cells[] |
	"<h2>\(.cell | @html)</h2><p>\(.unit | @html); redirected: \(if .redirected_share then "\(.redirected_share * 100 | round) % of the bytes of enrolled sockets, \(.redirected_bytes / 1e6 | round) MB" else "nothing" end)" +
	(if .failed | length > 0 then "; failed: \(.failed | join(", "))" else "" end) + "</p>", chart)
