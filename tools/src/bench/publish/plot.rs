//! A line plot as SVG. Places on the x axis are evenly spaced, whatever their values: those are counts and sizes
//! that double.

use std::fmt::Write as _;

use crate::show;

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 360.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 150.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 50.0;
/// Told apart by colour-blind readers as well (Okabe and Ito).
const COLOURS: [&str; 7] = [
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000",
];

/// What is shown.
#[derive(Clone, Debug)]
pub(super) struct Plot {
    pub(super) title: String,
    /// `bytes`: places are shown as sizes.
    pub(super) x_label: String,
    pub(super) y_label: String,
    pub(super) series: Vec<Series>,
}

/// A line.
#[derive(Clone, Debug)]
pub(super) struct Series {
    pub(super) name: String,
    /// By x.
    pub(super) points: Vec<(f64, f64)>,
}

impl Plot {
    /// The whole file.
    pub(super) fn svg(&self) -> String {
        let points = || self.series.iter().flat_map(|series| &series.points);
        let mut places: Vec<f64> = points().map(|point| point.0).collect();
        places.sort_by(f64::total_cmp);
        places.dedup();
        let top = ceiling(points().map(|point| point.1).fold(0.0, f64::max));
        let (wide, high) = (WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM);
        let across = |x: f64| {
            let at = places.iter().position(|place| place.total_cmp(&x).is_eq());
            let gaps = (places.len().max(2) - 1) as f64;
            LEFT + wide * at.unwrap_or(0) as f64 / gaps
        };
        let up = |y: f64| TOP + high * (1.0 - y / top);

        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
             font-family=\"sans-serif\" font-size=\"12\">\n\
             <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"white\"/>\n"
        );
        let mut text = |x: f64, y: f64, anchor: &str, words: &str| {
            let words = escape(words);
            let _ = writeln!(
                svg,
                "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{words}</text>"
            );
        };
        text(LEFT, 18.0, "start", &self.title);
        text(LEFT, TOP - 8.0, "end", &self.y_label);
        text(LEFT + wide / 2.0, HEIGHT - 10.0, "middle", &self.x_label);
        for place in &places {
            let label = if self.x_label == "bytes" {
                show::bytes(*place as u64)
            } else {
                format!("{place}")
            };
            text(across(*place), HEIGHT - BOTTOM + 18.0, "middle", &label);
        }
        for part in 0..=4 {
            let value = top * f64::from(part) / 4.0;
            let label = if top < 10.0 {
                format!("{value:.2}")
            } else {
                format!("{value:.0}")
            };
            text(LEFT - 6.0, up(value) + 4.0, "end", &label);
        }
        for (at, series) in self.series.iter().enumerate() {
            let y = TOP + 12.0 + 18.0 * at as f64;
            text(LEFT + wide + 30.0, y, "start", &series.name);
        }
        for part in 0..=4 {
            let y = up(top * f64::from(part) / 4.0);
            let right = LEFT + wide;
            let _ = writeln!(
                svg,
                "<path d=\"M{LEFT} {y:.1}H{right}\" stroke=\"#ddd\" fill=\"none\"/>"
            );
        }
        for (at, series) in self.series.iter().enumerate() {
            let colour = COLOURS[at % COLOURS.len()];
            let mut line = String::new();
            for (x, y) in &series.points {
                let (x, y) = (across(*x), up(*y));
                let verb = if line.is_empty() { 'M' } else { 'L' };
                let _ = write!(line, "{verb}{x:.1} {y:.1}");
                let _ = writeln!(
                    svg,
                    "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"{colour}\"/>"
                );
            }
            let _ = writeln!(
                svg,
                "<path d=\"{line}\" stroke=\"{colour}\" stroke-width=\"2\" fill=\"none\"/>"
            );
            let (x, y) = (LEFT + wide + 10.0, TOP + 8.0 + 18.0 * at as f64);
            let _ = writeln!(
                svg,
                "<path d=\"M{x} {y}h14\" stroke=\"{colour}\" stroke-width=\"2\"/>"
            );
        }
        svg.push_str("</svg>\n");
        svg
    }
}

/// The next 1, 2, 4 or 8 times a power of ten: its quarters are round as well.
fn ceiling(value: f64) -> f64 {
    if value <= 0.0 {
        return 1.0;
    }
    let power = 10_f64.powf(value.log10().floor());
    let steps = [1.0, 2.0, 4.0, 8.0];
    let step = steps.into_iter().find(|step| step * power >= value);
    step.unwrap_or(10.0) * power
}

fn escape(words: &str) -> String {
    words
        .replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_axis_ends_at_a_round_number_above_all_values() {
        for (value, end) in [
            (0.0, 1.0),
            (0.3, 0.4),
            (1.0, 1.0),
            (850.0, 1000.0),
            (2001.0, 4000.0),
        ] {
            assert!((ceiling(value) - end).abs() < 1e-9, "{value}");
        }
    }

    #[test]
    fn points_lie_where_their_values_are() {
        let plot = Plot {
            title: "a < b".to_owned(),
            x_label: "bytes".to_owned(),
            y_label: "MiB/s".to_owned(),
            series: vec![Series {
                name: "native".to_owned(),
                points: vec![(4096.0, 0.0), (8192.0, 50.0), (16384.0, 100.0)],
            }],
        };
        let svg = plot.svg();
        assert!(svg.contains("a &lt; b") && svg.contains("4.0 KiB"));
        assert!(
            svg.contains("d=\"M70.0 310.0L280.0 175.0L490.0 40.0\""),
            "{svg}"
        );
    }
}
