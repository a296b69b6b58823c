//! The pool through a scripted day, drawn: it expands fast, and shrinks slowly.
//!
//! Two hundred apps that sleep between their calls, and fifty that are all asked for at nine o'clock sharp, run on a
//! platform of the default preset in virtual time: the production control plane, gateway, pool, scalers and capacity
//! law, over instances that only take as long to start as a Java app does. The picture shows how often apps had to start,
//! how many stems the pool held for them, and how long the slowest request of each minute took.
//!
//! `cargo run --release --example pool_day -- [--days N] [--seed N] [--chart FILE.svg]`

#![allow(clippy::print_stdout, reason = "what it is for")]

use std::path::{Path, PathBuf};

use plotters::prelude::*;
use sas_sim::{Minute, PoolDay, pool_day};

const DEMAND: RGBColor = RGBColor(0xd5, 0x5e, 0x00);
const POOL: RGBColor = RGBColor(0x00, 0x72, 0xb2);
const RUNNING: RGBColor = RGBColor(0x00, 0x9e, 0x73);
const SLOWEST: RGBColor = RGBColor(0xaa, 0x33, 0x77);

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut script = PoolDay::default();
    let mut file = std::env::temp_dir().join("sas-pool-day.svg");
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let value = arguments.next().ok_or_else(|| format!("{argument}: needs a value"))?;
        let wrong = || format!("{argument}: {value}: must be a whole number");
        match argument.as_str() {
            "--days" => script.days = value.parse().ok().filter(|days| *days > 0).ok_or_else(wrong)?,
            "--seed" => script.seed = value.parse().map_err(|_| wrong())?,
            "--chart" => file = PathBuf::from(value),
            _ => return Err(format!("{argument}: unknown; known are --days, --seed and --chart").into()),
        }
    }
    let began = tokio::time::Instant::now();
    let minutes = pool_day(&script)?;
    println!(
        "{:>4} {:>9} {:>8} {:>6} {:>6} {:>17} {:>17}",
        "day", "requests", "starts", "cold", "stems", "09:00: cold", "slowest"
    );
    for (day, minutes) in minutes.chunks(1440).enumerate() {
        let burst = &minutes[script.burst_minute as usize];
        println!(
            "{:>4} {:>9} {:>8} {:>6} {:>6.1} {:>11} of {:>2} {:>14.2} s",
            day + 1,
            minutes.iter().map(|minute| u64::from(minute.requests)).sum::<u64>(),
            minutes.iter().map(|minute| minute.from_stem + minute.cold).sum::<u64>(),
            minutes.iter().map(|minute| minute.cold).sum::<u64>(),
            minutes.iter().map(|minute| f64::from(minute.stems)).sum::<f64>() / minutes.len() as f64,
            burst.cold,
            burst.cold + burst.from_stem,
            burst.slowest.as_secs_f64(),
        );
    }
    println!("{} days in {:.1} s", script.days, began.elapsed().as_secs_f64());
    let last = &minutes[minutes.len() - 1440..];
    draw(&file, script.days, last).map_err(|error| format!("{}: {error}", file.display()))?;
    println!("chart: {}", file.display());
    Ok(())
}

fn draw(file: &Path, day: u32, minutes: &[Minute]) -> Result<(), Box<dyn std::error::Error>> {
    let root = SVGBackend::new(file, (1000, 760)).into_drawing_area();
    root.fill(&WHITE)?;
    let title = format!("Expand fast, shrink slowly: day {day} of the pool");
    let root = root.titled(&title, ("sans-serif", 24))?;
    let (top, rest) = root.split_vertically(250);
    let (middle, bottom) = rest.split_vertically(230);

    let hour = |minute: &Minute| f64::from(minute.minute % 1440) / 60.0;
    let starts: Vec<(f64, f64)> =
        minutes.iter().map(|minute| (hour(minute), (minute.from_stem + minute.cold) as f64)).collect();
    let stems: Vec<(f64, f64)> =
        minutes.iter().map(|minute| (hour(minute), f64::from(minute.stems))).collect();
    let size: Vec<(f64, f64)> = minutes.iter().map(|minute| (hour(minute), f64::from(minute.size))).collect();
    let instances: Vec<(f64, f64)> =
        minutes.iter().map(|minute| (hour(minute), minute.instances as f64)).collect();
    let slowest: Vec<(f64, f64)> =
        minutes.iter().map(|minute| (hour(minute), minute.slowest.as_secs_f64())).collect();

    panel(
        &top,
        "per minute",
        &[
            Line { name: "stems that the pool is to hold", color: POOL, points: &size, filled: true },
            Line {
                name: "starts that took one, or found none",
                color: DEMAND,
                points: &starts,
                filled: false,
            },
        ],
        false,
    )?;
    panel(
        &middle,
        "held",
        &[
            Line { name: "instances", color: RUNNING, points: &instances, filled: true },
            Line { name: "stems, booted and free", color: POOL, points: &stems, filled: false },
        ],
        false,
    )?;
    panel(
        &bottom,
        "seconds",
        &[Line {
            name: "the slowest request of each minute",
            color: SLOWEST,
            points: &slowest,
            filled: false,
        }],
        true,
    )?;
    root.present()?;
    Ok(())
}

struct Line<'a> {
    name: &'a str,
    color: RGBColor,
    points: &'a [(f64, f64)],
    filled: bool,
}

/// One panel over the hours of the day; the last one says so.
fn panel<DB: DrawingBackend>(
    area: &DrawingArea<DB, plotters::coord::Shift>,
    unit: &str,
    lines: &[Line<'_>],
    last: bool,
) -> Result<(), Box<dyn std::error::Error>>
where
    DB::ErrorType: 'static,
{
    let highest = lines.iter().flat_map(|line| line.points).map(|point| point.1).fold(1.0, f64::max);
    let mut chart = ChartBuilder::on(area)
        .margin(8)
        .margin_right(24)
        .x_label_area_size(if last { 44 } else { 26 })
        .y_label_area_size(64)
        .build_cartesian_2d(0.0..24.0, 0.0..highest * 1.3)?;
    chart
        .configure_mesh()
        .x_labels(13)
        .y_labels(5)
        .x_label_formatter(&|hour| format!("{hour:02.0}:00"))
        .x_desc(if last { "time of day" } else { "" })
        .y_desc(unit)
        .label_style(("sans-serif", 14))
        .axis_desc_style(("sans-serif", 15))
        .light_line_style(WHITE.mix(0.0))
        .bold_line_style(BLACK.mix(0.10))
        .draw()?;
    for line in lines {
        let color = line.color;
        if line.filled {
            let area = AreaSeries::new(line.points.iter().copied(), 0.0, color.mix(0.18));
            chart.draw_series(area)?;
        }
        chart
            .draw_series(LineSeries::new(line.points.iter().copied(), color.stroke_width(2)))?
            .label(line.name)
            .legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 18, y)], color.stroke_width(3)));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .label_font(("sans-serif", 15))
        .background_style(WHITE.mix(0.85))
        .border_style(BLACK.mix(0.15))
        .draw()?;
    Ok(())
}
