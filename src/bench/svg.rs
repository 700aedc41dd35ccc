//! Two kinds of plot as SVG text: grouped bars, and lines over logarithmic
//! axes. Written by hand: a plotting library would bring font handling and
//! raster code for what is a few hundred rectangles and lines, and no hover
//! texts or dark colours.

use std::fmt::Write as _;

/// One bar, or a gap.
#[derive(Debug, Clone)]
pub struct Bar {
    /// Class that colours it.
    pub class: &'static str,
    /// What it is, for the hover text.
    pub name: String,
    /// Its height.
    pub value: f64,
    /// Ends of the interval around it.
    pub interval: (f64, f64),
    /// Drawn hollow: the figure is not what its name promises.
    pub hollow: bool,
}

/// Bars side by side over one label.
#[derive(Debug, Clone)]
pub struct Group {
    /// The label.
    pub label: String,
    /// The bars.
    pub bars: Vec<Bar>,
}

/// One line.
#[derive(Debug, Clone)]
pub struct Line {
    /// Class that colours it.
    pub class: &'static str,
    /// What it is.
    pub name: String,
    /// Dashed.
    pub dashed: bool,
    /// Abscissa and ordinate, and whether the point is hollow.
    pub points: Vec<(f64, f64, bool)>,
}

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 300.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 10.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 44.0;
/// Height of a line of the legend.
const LEGEND: f64 = 18.0;

/// Text that means itself in HTML and SVG.
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            // XML has no way to write the other control characters.
            c if c.is_control() && !matches!(c, '\n' | '\t') => escaped.push('\u{fffd}'),
            c => escaped.push(c),
        }
    }
    escaped
}

/// A plot of grouped bars, from 0 up.
pub fn bars(title: &str, unit: &str, groups: &[Group]) -> String {
    let all = groups.iter().flat_map(|group| &group.bars);
    let top = all
        .clone()
        .map(|bar| bar.value.max(bar.interval.1))
        .fold(0.0, f64::max);
    let scale = Linear::up_to(top);
    let mut names: Vec<(&str, &str, bool)> = Vec::new();
    for bar in all {
        if !names.iter().any(|(class, ..)| *class == bar.class) {
            names.push((bar.class, bar.class, false));
        }
    }
    let mut plot = Plot::new(title, unit, &names);
    for tick in scale.ticks() {
        plot.rule(scale.y(tick), &scaled(tick));
    }
    let room = (WIDTH - LEFT - RIGHT) / count(groups.len().max(1));
    for (n, group) in groups.iter().enumerate() {
        let start = LEFT + room * count(n);
        plot.label(start + room / 2.0, &group.label);
        let width = room * 0.8 / count(group.bars.len().max(1));
        for (m, bar) in group.bars.iter().enumerate() {
            let left = start + room * 0.1 + width * count(m);
            plot.bar(bar, &group.label, unit, (left, width), &scale);
        }
    }
    plot.end()
}

/// A plot of lines over two logarithmic axes; the abscissa counts bytes.
pub fn lines(title: &str, unit: &str, lines: &[Line]) -> String {
    let points = || lines.iter().flat_map(|line| &line.points);
    let x = Logarithmic::over(points().map(|point| point.0), 2.0, (LEFT, WIDTH - RIGHT));
    let y = Logarithmic::over(points().map(|point| point.1), 10.0, (HEIGHT - BOTTOM, TOP));
    let names: Vec<(&str, &str, bool)> = lines
        .iter()
        .map(|line| (line.class, line.name.as_str(), line.dashed))
        .collect();
    let mut plot = Plot::new(title, unit, &names);
    for tick in y.ticks() {
        plot.rule(y.at(tick), &scaled(tick));
    }
    let mut labelled: Vec<f64> = points().map(|point| point.0).collect();
    labelled.sort_by(f64::total_cmp);
    labelled.dedup();
    for size in labelled {
        plot.label(x.at(size), &bytes(size));
    }
    for line in lines {
        plot.line(line, unit, |(size, value)| (x.at(size), y.at(value)));
    }
    plot.end()
}

/// A linear axis from 0, upwards.
struct Linear {
    top: f64,
    step: f64,
}

impl Linear {
    fn up_to(top: f64) -> Self {
        let top = if top > 0.0 { top } else { 1.0 };
        let magnitude = 10_f64.powf((top / 5.0).log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0]
            .into_iter()
            .map(|n| n * magnitude)
            .find(|step| top / step <= 6.0)
            .unwrap_or(top);
        Self {
            top: (top / step).ceil() * step,
            step,
        }
    }

    fn ticks(&self) -> impl Iterator<Item = f64> {
        let step = self.step;
        let top = self.top * 1.001;
        (0..=6_u32)
            .map(move |n| f64::from(n) * step)
            .take_while(move |tick| *tick <= top)
    }

    fn y(&self, value: f64) -> f64 {
        (HEIGHT - BOTTOM) - (HEIGHT - BOTTOM - TOP) * (value / self.top).clamp(0.0, 1.0)
    }
}

/// A logarithmic axis that covers these values.
struct Logarithmic {
    low: f64,
    high: f64,
    ends: (f64, f64),
}

impl Logarithmic {
    fn over(values: impl Iterator<Item = f64> + Clone, base: f64, ends: (f64, f64)) -> Self {
        let values = values.filter(|value| *value > 0.0);
        let low = values.clone().fold(f64::INFINITY, f64::min);
        let high = values.fold(0.0, f64::max);
        let (low, high) = if low <= high { (low, high) } else { (1.0, 1.0) };
        // A little beyond, that points do not sit on the frame.
        let margin = base.powf(0.25);
        Self {
            low: low / margin,
            high: high * margin,
            ends,
        }
    }

    fn at(&self, value: f64) -> f64 {
        let part = (value.max(self.low) / self.low).ln() / (self.high / self.low).ln();
        self.ends.0 + (self.ends.1 - self.ends.0) * part
    }

    /// Powers of ten; where few fit, twice and five times these, too.
    fn ticks(&self) -> Vec<f64> {
        let decades = (self.high / self.low).log10();
        let steps: &[f64] = if decades < 3.0 {
            &[1.0, 2.0, 5.0]
        } else {
            &[1.0]
        };
        let first = self.low.log10().floor();
        (0..16_u32)
            .flat_map(|n| {
                let decade = 10_f64.powf(first + f64::from(n));
                steps.iter().map(move |step| step * decade)
            })
            .filter(|tick| (self.low..=self.high).contains(tick))
            .collect()
    }
}

struct Plot(String);

impl Plot {
    /// Legend below; names are class, text and whether the line is dashed.
    fn new(title: &str, unit: &str, names: &[(&str, &str, bool)]) -> Self {
        let columns = 3;
        let rows = names.len().div_ceil(columns);
        let height = HEIGHT + LEGEND * count(rows) + 4.0;
        let mut text = String::new();
        let _ = write!(
            text,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH:.0} {height:.0}\" \
             role=\"img\" aria-label=\"{0}\"><title>{0}</title>",
            escape(title)
        );
        for (n, (class, name, dashed)) in names.iter().enumerate() {
            let x = LEFT + (WIDTH - LEFT) / count(columns) * count(n % columns);
            let y = HEIGHT + LEGEND * count(n / columns) + 8.0;
            let dash = if *dashed { " dashed" } else { "" };
            let _ = write!(
                text,
                "<line class=\"{class}{dash} key\" x1=\"{x:.1}\" y1=\"{y:.1}\" x2=\"{:.1}\" \
                 y2=\"{y:.1}\"/><text class=\"name\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
                x + 22.0,
                x + 28.0,
                y + 4.0,
                escape(name)
            );
        }
        let _ = write!(
            text,
            "<text class=\"unit\" x=\"4\" y=\"{:.1}\" transform=\"rotate(-90 12 {1:.1})\">{2}</text>",
            HEIGHT - BOTTOM,
            HEIGHT - BOTTOM,
            escape(unit)
        );
        Self(text)
    }

    fn rule(&mut self, y: f64, text: &str) {
        let _ = write!(
            self.0,
            "<line class=\"rule\" x1=\"{LEFT}\" y1=\"{y:.1}\" x2=\"{:.1}\" y2=\"{y:.1}\"/>\
             <text class=\"tick\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            WIDTH - RIGHT,
            LEFT - 6.0,
            y + 4.0,
            escape(text)
        );
    }

    fn label(&mut self, x: f64, text: &str) {
        let _ = write!(
            self.0,
            "<text class=\"label\" x=\"{x:.1}\" y=\"{:.1}\">{}</text>",
            HEIGHT - BOTTOM + 18.0,
            escape(text)
        );
    }

    fn bar(&mut self, bar: &Bar, label: &str, unit: &str, at: (f64, f64), scale: &Linear) {
        let (left, width) = at;
        let top = scale.y(bar.value);
        let hollow = if bar.hollow { " hollow" } else { "" };
        let (low, high) = bar.interval;
        let middle = left + width / 2.0;
        let _ = write!(
            self.0,
            "<g><title>{}</title><rect class=\"{}{hollow}\" x=\"{left:.1}\" y=\"{top:.1}\" \
             width=\"{:.1}\" height=\"{:.1}\"/><line class=\"interval\" x1=\"{middle:.1}\" \
             y1=\"{:.1}\" x2=\"{middle:.1}\" y2=\"{:.1}\"/></g>",
            escape(&format!(
                "{}, {label}: {} {unit} ({} - {})",
                bar.name,
                scaled(bar.value),
                scaled(low),
                scaled(high)
            )),
            bar.class,
            width * 0.92,
            (HEIGHT - BOTTOM - top).max(0.0),
            scale.y(low),
            scale.y(high)
        );
    }

    fn line(&mut self, line: &Line, unit: &str, to: impl Fn((f64, f64)) -> (f64, f64)) {
        let dash = if line.dashed { " dashed" } else { "" };
        let places: Vec<(f64, f64)> = line.points.iter().map(|&(x, y, _)| to((x, y))).collect();
        let path: Vec<String> = places
            .iter()
            .map(|(x, y)| format!("{x:.1},{y:.1}"))
            .collect();
        let _ = write!(
            self.0,
            "<polyline class=\"{}{dash}\" points=\"{}\"/>",
            line.class,
            path.join(" ")
        );
        for ((x, y), &(size, value, hollow)) in places.iter().zip(&line.points) {
            let hollow = if hollow { " hollow" } else { "" };
            let _ = write!(
                self.0,
                "<circle class=\"{}{hollow}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.5\">\
                 <title>{}</title></circle>",
                line.class,
                escape(&format!(
                    "{}, {} B: {} {unit}",
                    line.name,
                    bytes(size),
                    scaled(value)
                ))
            );
        }
    }

    fn end(mut self) -> String {
        self.0.push_str("</svg>");
        self.0
    }
}

/// `65536` as `64K`.
fn bytes(size: f64) -> String {
    for (unit, name) in [(1_048_576.0, "M"), (1024.0, "K")] {
        if size >= unit && size % unit == 0.0 {
            return format!("{:.0}{name}", size / unit);
        }
    }
    format!("{size:.0}")
}

/// Three digits, and what they count.
fn scaled(number: f64) -> String {
    for (unit, name) in [(1e9, "G"), (1e6, "M"), (1e3, "k")] {
        if number >= unit {
            return trimmed(number / unit) + name;
        }
    }
    trimmed(number)
}

fn trimmed(number: f64) -> String {
    let digits = match number {
        n if n >= 100.0 => 0,
        n if n >= 10.0 => 1,
        _ => 2,
    };
    let text = format!("{number:.digits$}");
    if text.contains('.') {
        return text.trim_end_matches('0').trim_end_matches('.').to_owned();
    }
    text
}

/// Of things on a plot.
fn count(n: usize) -> f64 {
    f64::from(u32::try_from(n).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::{Bar, Group, Line, Linear, Logarithmic, bars, bytes, escape, lines, scaled};

    fn bar(value: f64) -> Bar {
        Bar {
            class: "tcp",
            name: "<tcp & \"co\">".to_owned(),
            value,
            interval: (value * 0.9, value * 1.1),
            hollow: value > 5.0,
        }
    }

    #[test]
    fn plots_are_xml_with_one_mark_per_value() {
        let group = |label: &str| Group {
            label: label.to_owned(),
            bars: vec![bar(3.0), bar(7.0)],
        };
        let text = bars("a < b", "requests/s", &[group("64 B"), group("'1' & 2")]);
        let document = roxmltree::Document::parse(&text).expect("XML");
        let named = |name: &str| {
            let is = move |node: &roxmltree::Node| {
                node.has_tag_name(("http://www.w3.org/2000/svg", name))
            };
            document.descendants().filter(is).count()
        };
        assert_eq!(named("rect"), 4);
        assert_eq!(text.matches("hollow").count(), 2);
        let line = Line {
            class: "unix",
            name: "unix".to_owned(),
            dashed: true,
            points: vec![
                (1.0, 10.0, false),
                (1024.0, 5e6, true),
                (65_536.0, 1e9, false),
            ],
        };
        let text = lines("c", "B/s", &[line]);
        let document = roxmltree::Document::parse(&text).expect("XML");
        let circles = document
            .descendants()
            .filter(|node| node.tag_name().name() == "circle")
            .count();
        assert_eq!(circles, 3);
    }

    #[test]
    fn nothing_to_plot_is_still_a_plot() {
        for text in [bars("", "x", &[]), lines("", "x", &[])] {
            roxmltree::Document::parse(&text).expect("XML");
            assert!(!text.contains("NaN") && !text.contains("inf"), "{text}");
        }
    }

    #[test]
    fn what_means_something_to_html_is_escaped() {
        assert_eq!(
            escape("<a href=\"x\">'&'</a>\u{1}"),
            "&lt;a href=&quot;x&quot;&gt;&#39;&amp;&#39;&lt;/a&gt;\u{fffd}"
        );
    }

    #[test]
    fn axes_reach_over_the_values() {
        for top in [0.0, 0.3, 1.0, 7.0, 99.0, 123_456.0] {
            let scale = Linear::up_to(top);
            assert!(scale.top >= top && scale.ticks().count() >= 2, "{top}");
        }
        let axis = Logarithmic::over([1.0, 1e6].into_iter(), 10.0, (0.0, 100.0));
        assert!(axis.at(1.0) > 0.0 && axis.at(1e6) < 100.0);
        assert!(axis.at(1.0) < axis.at(10.0));
        assert_eq!(axis.ticks().len(), 7);
    }

    #[test]
    fn numbers_are_short() {
        for (number, text) in [
            (0.0, "0"),
            (0.25, "0.25"),
            (12.345, "12.3"),
            (1500.0, "1.5k"),
            (2e6, "2M"),
            (3.14e9, "3.14G"),
        ] {
            assert_eq!(scaled(number), text);
        }
        assert_eq!(bytes(64.0), "64");
        assert_eq!(bytes(65_536.0), "64K");
        assert_eq!(bytes(1_048_576.0), "1M");
    }
}
