//! The one chart that the examples draw: lines over a common x axis, as SVG.

use std::{io, path::Path};

use plotters::prelude::*;

/// A line of a chart.
#[derive(Clone, Debug)]
pub(crate) struct Series {
    /// What the legend says.
    pub(crate) name: String,
    /// Its points, in order.
    pub(crate) points: Vec<(f64, f64)>,
}

/// Colours that stay apart on white paper and for colour-blind eyes.
const COLORS: [RGBColor; 8] = [
    RGBColor(0x00, 0x72, 0xb2),
    RGBColor(0xd5, 0x5e, 0x00),
    RGBColor(0x00, 0x9e, 0x73),
    RGBColor(0xaa, 0x33, 0x77),
    RGBColor(0x33, 0x33, 0x33),
    RGBColor(0x99, 0x70, 0x00),
    RGBColor(0x56, 0xb4, 0xe9),
    RGBColor(0x88, 0x88, 0x88),
];

/// Draws `series` to an SVG file of 960 × 540 pixels. The axes begin at zero unless a point lies below.
pub(crate) fn lines(path: &Path, title: &str, x: &str, y: &str, series: &[Series]) -> io::Result<()> {
    let points = || series.iter().flat_map(|s| s.points.iter().copied());
    let (mut x_range, mut y_range) = ((0.0_f64, 1.0_f64), (0.0_f64, 1.0_f64));
    if points().next().is_some() {
        let bounds = |of: fn((f64, f64)) -> f64| {
            points()
                .map(of)
                .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)))
        };
        x_range = bounds(|p| p.0);
        y_range = bounds(|p| p.1);
        y_range.0 = y_range.0.min(0.0);
    }
    if x_range.1 <= x_range.0 {
        x_range.1 = x_range.0 + 1.0;
    }
    // Room above the lines for the legend.
    y_range.1 = if y_range.1 <= y_range.0 { y_range.0 + 1.0 } else { y_range.1 * 1.25 };
    draw(path, title, x, y, series, x_range, y_range).map_err(io::Error::other)
}

fn draw(
    path: &Path,
    title: &str,
    x: &str,
    y: &str,
    series: &[Series],
    x_range: (f64, f64),
    y_range: (f64, f64),
) -> Result<(), String> {
    let root = SVGBackend::new(path, (960, 540)).into_drawing_area();
    let text = |error: DrawingAreaErrorKind<_>| format!("{error}");
    root.fill(&WHITE).map_err(text)?;
    let mut chart = ChartBuilder::on(&root)
        .caption(title, ("sans-serif", 22))
        .margin(16)
        .x_label_area_size(44)
        .y_label_area_size(64)
        .build_cartesian_2d(x_range.0..x_range.1, y_range.0..y_range.1)
        .map_err(text)?;
    chart
        .configure_mesh()
        .x_desc(x)
        .y_desc(y)
        .label_style(("sans-serif", 14))
        .axis_desc_style(("sans-serif", 16))
        .x_label_formatter(&|value| tick(*value))
        .y_label_formatter(&|value| tick(*value))
        .light_line_style(WHITE.mix(0.0))
        .bold_line_style(BLACK.mix(0.12))
        .draw()
        .map_err(text)?;
    for (at, line) in series.iter().enumerate() {
        let color = COLORS[at % COLORS.len()];
        chart
            .draw_series(LineSeries::new(line.points.iter().copied(), color.stroke_width(2)))
            .map_err(text)?
            .label(line.name.as_str())
            .legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 18, y)], color.stroke_width(2)));
        // Where points are few, each is a measurement of its own.
        if line.points.len() <= 24 {
            let dots = line.points.iter().map(|&point| Circle::new(point, 3, color.filled()));
            chart.draw_series(dots).map_err(text)?;
        }
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .label_font(("sans-serif", 15))
        .background_style(WHITE.mix(0.85))
        .border_style(BLACK.mix(0.2))
        .draw()
        .map_err(text)?;
    root.present().map_err(text)
}

/// A number without the noise of its binary form.
fn tick(value: f64) -> String {
    let text = format!("{value:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}
