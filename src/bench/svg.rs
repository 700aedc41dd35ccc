//! Two kinds of plot as SVG text: grouped bars, and lines over logarithmic
//! axes. The page decides on the colour of texts and of intervals, black here.

use std::io;

use plotters::chart::MeshStyle;
use plotters::coord::Shift;
use plotters::data::float::FloatPrettyPrinter;
use plotters::element::DashedPathElement;
use plotters::prelude::*;

use super::options::Mode;
use super::sample::float;

/// One bar, or a gap.
#[derive(Debug, Clone)]
pub struct Bar {
    /// What was measured.
    pub mode: Mode,
    /// Its height.
    pub value: f64,
    /// Ends of the interval around it.
    pub interval: (f64, f64),
    /// Drawn hollow: the figure is not what its name promises.
    pub hollow: bool,
}

/// Bars side by side over one size of message.
#[derive(Debug, Clone)]
pub struct Group {
    /// The size.
    pub size: f64,
    /// The bars.
    pub bars: Vec<Bar>,
}

/// One line.
#[derive(Debug, Clone)]
pub struct Line {
    /// What was measured.
    pub mode: Mode,
    /// What it is.
    pub name: String,
    /// Dashed.
    pub dashed: bool,
    /// Abscissa and ordinate, and whether the point is hollow.
    pub points: Vec<(f64, f64, bool)>,
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Drawn = Result<(), Box<dyn std::error::Error + Send + Sync>>;

const SIZE: (u32, u32) = (640, 320);
const FONT: (&str, u32) = ("sans-serif", 13);
/// Room for the legend, on the right.
const LEGEND: u32 = 180;
/// To be seen on white and on black.
const GREY: RGBColor = RGBColor(128, 128, 128);
/// Length of a dash and of the gap after it.
const DASH: (u32, u32) = (6, 4);

/// A plot of grouped bars, from 0 up.
pub fn bars(unit: &str, groups: &[Group]) -> io::Result<String> {
    let mut key: Vec<(Mode, String, bool)> = Vec::new();
    for bar in groups.iter().flat_map(|group| &group.bars) {
        if !key.iter().any(|(mode, ..)| *mode == bar.mode) {
            key.push((bar.mode, bar.mode.name().to_owned(), false));
        }
    }
    plot(&key, |area| draw_bars(area, unit, groups))
}

/// A plot of lines over two logarithmic axes; the abscissa counts bytes.
pub fn lines(unit: &str, lines: &[Line]) -> io::Result<String> {
    let key: Vec<(Mode, String, bool)> = lines
        .iter()
        .map(|line| (line.mode, line.name.clone(), line.dashed))
        .collect();
    plot(&key, |area| draw_lines(area, unit, lines))
}

fn plot(key: &[(Mode, String, bool)], draw: impl FnOnce(&Area) -> Drawn) -> io::Result<String> {
    let mut text = String::new();
    let root = SVGBackend::with_string(&mut text, SIZE).into_drawing_area();
    let (left, right) = root.split_horizontally(SIZE.0 - LEGEND);
    draw(&left)
        .and_then(|()| legend(&right, key))
        .and_then(|()| Ok(root.present()?))
        .map_err(io::Error::other)?;
    drop((left, right, root));
    Ok(text)
}

fn draw_bars(area: &Area, unit: &str, groups: &[Group]) -> Drawn {
    let all = groups.iter().flat_map(|group| &group.bars);
    let top = all.fold(0.0, |top, bar| bar.value.max(bar.interval.1).max(top));
    let top = if top > 0.0 { top * 1.05 } else { 1.0 };
    let room = groups.len().max(1);
    // The middle of a group is a whole number, and only these have labels.
    let mut chart = builder(area).build_cartesian_2d(-0.5..count(room) - 0.5, 0.0..top)?;
    let label = |x: f64| {
        let mut of = groups.iter().enumerate();
        let of = of.find(|(n, _)| (count(*n) - x).abs() < 0.01);
        of.map_or(String::new(), |(_, group)| bytes(group.size))
    };
    let mut mesh = chart.configure_mesh();
    dress(&mut mesh, unit)
        .disable_x_mesh()
        .x_labels(2 * room + 2)
        .set_tick_mark_size(LabelAreaPosition::Bottom, 0)
        .x_label_formatter(&|x| label(*x))
        .draw()?;
    for (n, group) in groups.iter().enumerate() {
        let width = 0.8 / count(group.bars.len());
        for (m, bar) in group.bars.iter().enumerate() {
            let left = count(n) - 0.4 + width * count(m);
            let right = left + width * 0.9;
            let style = style(bar.mode, bar.hollow);
            let (low, high) = bar.interval;
            let middle = f64::midpoint(left, right);
            chart.draw_series([Rectangle::new([(left, 0.0), (right, bar.value)], style)])?;
            chart.draw_series([PathElement::new(
                [(middle, low), (middle, high)],
                BLACK.stroke_width(2),
            )])?;
        }
    }
    Ok(())
}

fn draw_lines(area: &Area, unit: &str, lines: &[Line]) -> Drawn {
    let points = || lines.iter().flat_map(|line| &line.points);
    let mut sizes: Vec<f64> = points().map(|point| point.0).collect();
    sizes.sort_by(f64::total_cmp);
    sizes.dedup();
    let (narrow, wide) = ends(sizes.iter().copied());
    // Whole decades, each of which has a tick.
    let (low, high) = ends(points().map(|point| point.1));
    let low = 10_f64.powf(low.log10().floor());
    let high = 10_f64.powf(high.log10().ceil()).max(low * 10.0);
    let mut chart = builder(area).build_cartesian_2d(
        // A little beyond, that points do not sit on the frame.
        (narrow / 1.3..wide * 1.3)
            .log_scale()
            .with_key_points(sizes),
        // Ten times the tenth power can be a little less than the eleventh.
        (low * 0.999..high * 1.001).log_scale(),
    )?;
    let mut mesh = chart.configure_mesh();
    dress(&mut mesh, unit)
        .x_label_formatter(&|x| bytes(*x))
        .draw()?;
    for line in lines {
        let path = line.points.iter().map(|&(x, y, _)| (x, y.max(low)));
        let stroke = colour(line.mode).stroke_width(2);
        if line.dashed {
            chart.draw_series(DashedLineSeries::new(path, DASH.0, DASH.1, stroke))?;
        } else {
            chart.draw_series(LineSeries::new(path, stroke))?;
        }
        chart.draw_series(
            line.points
                .iter()
                .map(|&(x, y, hollow)| Circle::new((x, y.max(low)), 4, style(line.mode, hollow))),
        )?;
    }
    Ok(())
}

fn builder<'a, 'b>(area: &'a Area<'b>) -> ChartBuilder<'a, 'b, SVGBackend<'b>> {
    let mut builder = ChartBuilder::on(area);
    builder
        .margin(8)
        .x_label_area_size(40)
        .y_label_area_size(60);
    builder
}

/// Axes, and what they count.
fn dress<'m, 'a, 'b, X: Ranged, Y: Ranged<ValueType = f64>, DB: DrawingBackend>(
    mesh: &'m mut MeshStyle<'a, 'b, X, Y, DB>,
    unit: &str,
) -> &'m mut MeshStyle<'a, 'b, X, Y, DB> {
    mesh.max_light_lines(0)
        .y_labels(7)
        .bold_line_style(GREY.mix(0.4))
        .axis_style(GREY)
        .label_style(FONT)
        .x_desc("message size, bytes")
        .y_desc(unit)
        .y_label_formatter(&|y| scaled(*y))
}

/// A chart of nothing but names.
fn legend(area: &Area, key: &[(Mode, String, bool)]) -> Drawn {
    let mut chart = ChartBuilder::on(area).build_cartesian_2d(0..1, 0..1)?;
    for (mode, name, dashed) in key {
        let (stroke, dashed) = (colour(*mode).stroke_width(4), *dashed);
        chart
            .draw_series(std::iter::empty::<Circle<(i32, i32), u32>>())?
            .label(name)
            .legend(move |(x, y)| {
                let gap = if dashed { DASH.1 } else { 0 };
                DashedPathElement::new([(x, y), (x + 20, y)], DASH.0, gap, stroke)
            });
    }
    chart
        .configure_series_labels()
        .label_font(FONT)
        .position(SeriesLabelPosition::UpperLeft)
        .draw()?;
    Ok(())
}

/// The same on every plot.
fn colour(mode: Mode) -> RGBColor {
    match mode {
        Mode::Tcp => RGBColor(107, 114, 128),
        Mode::TcpAgain => RGBColor(168, 176, 189),
        Mode::Sockaccel => RGBColor(47, 111, 237),
        Mode::Variant => RGBColor(139, 92, 246),
        Mode::Textbook => RGBColor(217, 119, 6),
        Mode::Unix => RGBColor(15, 157, 118),
        Mode::ToRemote => RGBColor(219, 39, 119),
        Mode::FromRemote => RGBColor(8, 145, 178),
    }
}

fn style(mode: Mode, hollow: bool) -> ShapeStyle {
    let stroke = colour(mode).stroke_width(2);
    if hollow { stroke } else { stroke.filled() }
}

fn count(n: usize) -> f64 {
    float(n as u64)
}

/// The least and the greatest of what a logarithmic axis can show.
fn ends(values: impl Iterator<Item = f64>) -> (f64, f64) {
    values
        .filter(|value| *value > 0.0)
        .map(|value| (value, value))
        .reduce(|a, b| (a.0.min(b.0), a.1.max(b.1)))
        .unwrap_or((1.0, 1.0))
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

/// Two decimals at most, and what they count.
fn scaled(number: f64) -> String {
    let units = [(1e9, "G"), (1e6, "M"), (1e3, "k")];
    // What was computed as a power of ten can be a little less than that.
    let unit = units.into_iter().find(|(unit, _)| number >= unit * 0.999);
    let (unit, name) = unit.unwrap_or((1.0, ""));
    let printer = FloatPrettyPrinter {
        allow_scientific: false,
        min_decimal: 0,
        max_decimal: 2,
    };
    printer.print(number / unit) + name
}

#[cfg(test)]
mod tests {
    use super::{Bar, Group, Line, Mode, bars, bytes, lines, scaled};

    fn bar(mode: Mode, value: f64) -> Bar {
        Bar {
            mode,
            value,
            interval: (value * 0.9, value * 1.1),
            hollow: value > 5.0,
        }
    }

    /// How many are filled, and how many are hollow.
    fn marks(text: &str, tag: &str) -> (usize, usize) {
        let document = roxmltree::Document::parse(text).expect("XML");
        let is = |hollow: bool| {
            let of = document.descendants().filter(move |node| {
                node.has_tag_name(("http://www.w3.org/2000/svg", tag))
                    && node.attribute("opacity") != Some("0")
                    && (node.attribute("fill") == Some("none")) == hollow
            });
            of.count()
        };
        (is(false), is(true))
    }

    #[test]
    fn plots_are_xml_with_one_mark_per_value() {
        let group = |size: f64| Group {
            size,
            bars: vec![bar(Mode::Tcp, 3.0), bar(Mode::Sockaccel, 7.0)],
        };
        let text = bars("a < b & \"c\"", &[group(64.0), group(65_536.0)]).expect("a plot");
        assert_eq!(marks(&text, "rect"), (2, 2), "{text}");
        for label in [
            "64",
            "64K",
            "tcp",
            "sockaccel",
            "a &lt; b &amp; &quot;c&quot;",
        ] {
            assert!(text.contains(&format!("\n{label}\n")), "{label}: {text}");
        }
        let line = |dashed: bool| Line {
            mode: Mode::Unix,
            name: "<unix>".to_owned(),
            dashed,
            points: vec![
                (1.0, 10.0, false),
                (1024.0, 5e6, true),
                (65_536.0, 1e9, false),
            ],
        };
        let solid = lines("B/s", &[line(false)]).expect("a plot");
        assert_eq!(marks(&solid, "circle"), (2, 1), "{solid}");
        for label in ["1", "1K", "64K", "10", "10M", "1G", "&lt;unix&gt;"] {
            assert!(solid.contains(&format!("\n{label}\n")), "{label}: {solid}");
        }
        let dashed = lines("B/s", &[line(true)]).expect("a plot");
        let strokes = |text: &str| text.matches("<polyline").count();
        assert!(strokes(&dashed) > strokes(&solid) + 10, "{dashed}");
    }

    #[test]
    fn nothing_to_plot_is_still_a_plot() {
        let zero = Group {
            size: 1.0,
            bars: vec![bar(Mode::Tcp, 0.0)],
        };
        for text in [bars("x", &[]), bars("x", &[zero]), lines("x", &[])] {
            let text = text.expect("a plot");
            roxmltree::Document::parse(&text).expect("XML");
            assert!(!text.contains("NaN") && !text.contains("inf"), "{text}");
        }
    }

    #[test]
    fn numbers_are_short() {
        for (number, text) in [
            (0.0, "0"),
            (0.25, "0.25"),
            (12.345, "12.35"),
            (1500.0, "1.5k"),
            (999_999.999, "1M"),
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
