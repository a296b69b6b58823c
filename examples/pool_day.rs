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

const STARTS: RGBColor = RGBColor(0xe6, 0x9f, 0x00);
const COLD: RGBColor = RGBColor(0xc0, 0x39, 0x2b);
const POOL: RGBColor = RGBColor(0x00, 0x72, 0xb2);
const RUNNING: RGBColor = RGBColor(0x00, 0x9e, 0x73);
const FIRST: RGBColor = RGBColor(0x99, 0x99, 0x99);
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
        "{:>4} {:>9} {:>8} {:>6} {:>6} {:>17} {:>17} {:>23}",
        "day", "requests", "starts", "cold", "stems", "09:00: cold", "slowest", "slowest, 09:45 to 10:15"
    );
    for (day, minutes) in minutes.chunks(1440).enumerate() {
        let burst = &minutes[script.burst_minute as usize];
        // What was woken ahead for the next burst, which does not come, must not be in anybody's way.
        let hour_later = script.burst_minute as usize + 60;
        let after = minutes[hour_later - 15..hour_later + 15].iter().map(|minute| minute.slowest).max();
        println!(
            "{:>4} {:>9} {:>8} {:>6} {:>6.1} {:>11} of {:>2} {:>14.2} s {:>20.2} s",
            day + 1,
            minutes.iter().map(|minute| u64::from(minute.requests)).sum::<u64>(),
            minutes.iter().map(|minute| minute.from_stem + minute.cold).sum::<u64>(),
            minutes.iter().map(|minute| minute.cold).sum::<u64>(),
            minutes.iter().map(|minute| f64::from(minute.stems)).sum::<f64>() / minutes.len() as f64,
            burst.cold,
            burst.cold + burst.from_stem,
            burst.slowest.as_secs_f64(),
            after.unwrap_or_default().as_secs_f64(),
        );
    }
    println!("{} days in {:.1} s", script.days, began.elapsed().as_secs_f64());
    draw(&file, &script, &minutes).map_err(|error| format!("{}: {error}", file.display()))?;
    println!("chart: {}", file.display());
    Ok(())
}

/// Points over the hours of a day.
fn over(day: &[Minute], value: impl Fn(&Minute) -> f64) -> Vec<(f64, f64)> {
    day.iter().map(|minute| (f64::from(minute.minute % 1440) / 60.0, value(minute))).collect()
}

fn draw(file: &Path, script: &PoolDay, minutes: &[Minute]) -> Result<(), Box<dyn std::error::Error>> {
    let (first, last) = (&minutes[..1440], &minutes[minutes.len() - 1440..]);
    let root = SVGBackend::new(file, (1000, 980)).into_drawing_area();
    root.fill(&WHITE)?;
    let root = root.titled("Expand fast, shrink slowly: the pool through a day", ("sans-serif", 24))?;
    let panels = root.split_evenly((4, 1));

    let burst = f64::from(script.burst_minute) / 60.0;
    let surprise = f64::from(script.surprise_minute) / 60.0;
    let at_once = format!("{} apps at once", script.burst_apps);
    for (panel_of, day, name) in [(&panels[0], first, "the first day"), (&panels[1], last, "the last day")] {
        let starts = over(day, |minute| (minute.from_stem + minute.cold) as f64);
        let cold = over(day, |minute| minute.cold as f64);
        let size = over(day, |minute| f64::from(minute.size));
        let mut notes = vec![(burst, at_once.as_str())];
        if std::ptr::eq(day, last) {
            notes.push((surprise, "and unannounced"));
        }
        panel(
            panel_of,
            &format!("a minute, {name}"),
            false,
            &notes,
            &[
                Line::filled("starts", STARTS, &starts),
                Line::filled("of these, that found no stem", COLD, &cold),
                Line::plain("stems that the pool is to hold", POOL, &size),
            ],
        )?;
    }
    let instances = over(last, |minute| minute.instances as f64);
    let stems = over(last, |minute| f64::from(minute.stems));
    panel(
        &panels[2],
        "held, the last day",
        false,
        &[],
        &[
            Line::filled("instances", RUNNING, &instances),
            Line::plain("stems, booted and free", POOL, &stems),
        ],
    )?;
    let (slow_first, slow_last) =
        (over(first, |it| it.slowest.as_secs_f64()), over(last, |it| it.slowest.as_secs_f64()));
    panel(
        &panels[3],
        "seconds",
        true,
        &[],
        &[
            Line::plain("slowest request, first day", FIRST, &slow_first),
            Line::plain("slowest request, last day", SLOWEST, &slow_last),
        ],
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

impl<'a> Line<'a> {
    fn plain(name: &'a str, color: RGBColor, points: &'a [(f64, f64)]) -> Self {
        Self { name, color, points, filled: false }
    }

    fn filled(name: &'a str, color: RGBColor, points: &'a [(f64, f64)]) -> Self {
        Self { filled: true, ..Self::plain(name, color, points) }
    }
}

/// One panel over the hours of the day; the last one says so.
fn panel<DB: DrawingBackend>(
    area: &DrawingArea<DB, plotters::coord::Shift>,
    unit: &str,
    last: bool,
    notes: &[(f64, &str)],
    lines: &[Line<'_>],
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
        .y_label_formatter(&|value| format!("{value:.0}"))
        .y_desc(unit)
        .label_style(("sans-serif", 14))
        .axis_desc_style(("sans-serif", 15))
        .light_line_style(WHITE.mix(0.0))
        .bold_line_style(BLACK.mix(0.10))
        .draw()?;
    for line in lines {
        let color = line.color;
        if line.filled {
            let area = AreaSeries::new(line.points.iter().copied(), 0.0, color.mix(0.35));
            chart.draw_series(area)?;
        }
        chart
            .draw_series(LineSeries::new(line.points.iter().copied(), color.stroke_width(1)))?
            .label(line.name)
            .legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 18, y)], color.stroke_width(3)));
    }
    for (hour, note) in notes {
        let style = ("sans-serif", 14).into_font().color(&BLACK.mix(0.75));
        let at = (*hour, highest * 1.12);
        chart.plotting_area().draw(&Text::new(*note, at, style))?;
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
