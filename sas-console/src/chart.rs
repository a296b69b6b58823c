//! Charts as SVG: what instances, requests and decisions did, on one axis of time. Each stands beside a table that says the
//! same.

use std::fmt::Write as _;

use maud::{Markup, html};

use crate::text::clock;

/// Seconds on the axis.
pub(crate) const SPAN: i64 = 300;
/// Units from the top of a panel to its bottom.
const HEIGHT: f64 = 60.0;

/// One colour of a stack.
#[derive(Debug)]
pub(crate) struct Layer {
    pub(crate) name: &'static str,
    /// The class that gives it its colour.
    pub(crate) class: &'static str,
    /// One value per second.
    pub(crate) values: Vec<f64>,
}

/// A moment with a reason.
#[derive(Debug)]
pub(crate) struct Mark {
    /// In seconds on the axis, from its left end.
    pub(crate) at: f64,
    pub(crate) text: String,
}

/// Things that are stacked, a line above them, and marks.
#[derive(Debug, Default)]
pub(crate) struct Panel {
    pub(crate) title: &'static str,
    /// The same in a sentence with its numbers, for who does not see it.
    pub(crate) told: String,
    pub(crate) layers: Vec<Layer>,
    pub(crate) line: Option<Layer>,
    pub(crate) marks: Vec<Mark>,
}

/// The next number from one, two and five times a power of ten.
fn round_up(most: f64) -> f64 {
    let most = most.max(1.0);
    let power = 10_f64.powf(most.log10().floor());
    [1.0, 2.0, 5.0, 10.0].into_iter().map(|step| step * power).find(|bound| *bound >= most).unwrap_or(most)
}

fn y(value: f64, most: f64) -> f64 {
    HEIGHT - (value / most).clamp(0.0, 1.0) * HEIGHT
}

/// Steps through the values, from left to right: each second one unit wide.
fn steps(values: &[f64], most: f64) -> String {
    let mut path = String::new();
    let mut last = None;
    for (at, value) in values.iter().enumerate() {
        let level = y(*value, most);
        if last.is_none() {
            let _ = write!(path, "M{at} {level:.1}");
        } else if last != Some(level) {
            let _ = write!(path, "H{at}V{level:.1}");
        }
        last = Some(level);
    }
    let _ = write!(path, "H{}", values.len());
    path
}

/// What lies between two levels: through the upper one, and back through the lower one.
fn between(upper: &[f64], lower: &[f64], most: f64) -> String {
    let mut path = steps(upper, most);
    let mut last = None;
    for (at, value) in lower.iter().enumerate().rev() {
        let level = y(*value, most);
        if last.is_none() {
            let _ = write!(path, "V{level:.1}");
        } else if last != Some(level) {
            let _ = write!(path, "H{}V{level:.1}", at + 1);
        }
        last = Some(level);
    }
    path.push_str("H0Z");
    path
}

impl Panel {
    /// The panel, with its legend. `until` is the right end of the axis, in seconds since 1970.
    pub(crate) fn draw(&self, until: i64) -> Markup {
        let length = SPAN as usize;
        let mut levels = vec![vec![0.0; length]];
        for layer in &self.layers {
            let below = &levels[levels.len() - 1];
            let level = below.iter().zip(&layer.values).map(|(below, value)| below + value).collect();
            levels.push(level);
        }
        let line = self.line.iter().flat_map(|line| &line.values);
        let most = round_up(levels[levels.len() - 1].iter().chain(line).copied().fold(0.0, f64::max));
        html! {
            figure.chart {
                figcaption {
                    strong { (self.title) }
                    span.legend {
                        @for layer in self.layers.iter().chain(&self.line) {
                            span { i class=(format!("key {}", layer.class)) {} (layer.name) }
                        }
                    }
                }
                div.plot {
                    span.most aria-hidden="true" { (most) }
                    svg viewBox=(format!("0 0 {SPAN} {HEIGHT}")) preserveAspectRatio="none" role="img" aria-label=(self.told) {
                        @for minute in 1..SPAN / 60 {
                            line.grid x1=(minute * 60) x2=(minute * 60) y1="0" y2=(HEIGHT) {}
                        }
                        @for (at, layer) in self.layers.iter().enumerate() {
                            path class=(layer.class) d=(between(&levels[at + 1], &levels[at], most)) {}
                        }
                        @if let Some(line) = &self.line {
                            path class=(line.class) d=(steps(&line.values, most)) {}
                        }
                        @for mark in &self.marks {
                            g.mark {
                                title { (mark.text) }
                                rect x=(format!("{:.1}", mark.at - 1.5)) y="0" width="3" height=(HEIGHT) {}
                                line x1=(format!("{:.1}", mark.at)) x2=(format!("{:.1}", mark.at)) y1="0" y2=(HEIGHT) {}
                            }
                        }
                    }
                }
                div.axis aria-hidden="true" {
                    @for minute in (0..=SPAN / 60).rev() {
                        span { (&clock(until - minute * 60)[..5]) }
                    }
                }
            }
        }
    }
}

/// The phases of something, one after the other, as a bar: of a start, or of a request.
#[derive(Debug)]
pub(crate) struct Phases {
    /// Name, class, and milliseconds.
    pub(crate) parts: Vec<(&'static str, &'static str, f64)>,
}

impl Phases {
    /// The bar, where `most` milliseconds are its whole width.
    pub(crate) fn draw(&self, most: f64) -> Markup {
        self.bar(most, crate::text::millis)
    }

    /// The same of things that are counted.
    pub(crate) fn counts(&self, most: f64) -> Markup {
        self.bar(most, |count| format!("{count:.0}"))
    }

    fn bar(&self, most: f64, said: impl Fn(f64) -> String) -> Markup {
        let most = most.max(0.001);
        let mut from = 0.0;
        let parts: Vec<_> = self
            .parts
            .iter()
            .filter(|(.., ms)| *ms > 0.0)
            .map(|(name, class, ms)| {
                let (x, width) = (from / most * 100.0, ms / most * 100.0);
                from += ms;
                (name, class, x, width, ms)
            })
            .collect();
        let told: Vec<String> = parts.iter().map(|(name, .., ms)| format!("{name} {}", said(**ms))).collect();
        html! {
            svg.phases viewBox="0 0 100 10" preserveAspectRatio="none" role="img" aria-label=(told.join(", ")) {
                @for (name, class, x, width, ms) in &parts {
                    rect class=(class) x=(format!("{x:.2}")) y="0" width=(format!("{:.2}", width.max(0.4))) height="10" {
                        title { (name) " " (said(**ms)) }
                    }
                }
            }
        }
    }
}

/// A share of 100 as a bar.
pub(crate) fn share(percent: f64, class: &str) -> Markup {
    html! {
        svg.share viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true" {
            rect.ground x="0" y="0" width="100" height="10" {}
            rect class=(class) x="0" y="0" width=(format!("{:.1}", percent.clamp(0.0, 100.0))) height="10" {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_written_where_something_changes() {
        assert_eq!(steps(&[0.0, 0.0, 2.0, 2.0, 1.0], 2.0), "M0 60.0H2V0.0H4V30.0H5");
        assert_eq!(between(&[1.0, 2.0], &[0.0, 1.0], 2.0), "M0 30.0H1V0.0H2V30.0H1V60.0H0Z");
    }

    #[test]
    fn the_axis_ends_at_a_round_number() {
        for (most, end) in [(0.0, 1.0), (1.0, 1.0), (3.0, 5.0), (6.0, 10.0), (11.0, 20.0), (999.0, 1000.0)] {
            assert_eq!(round_up(most), end);
        }
    }

    #[test]
    fn reasons_are_text_in_a_chart() {
        let length = SPAN as usize;
        let panel = Panel {
            title: "Instances",
            told: "1 <ready>".to_owned(),
            layers: vec![Layer { name: "ready", class: "ready", values: vec![1.0; length] }],
            marks: vec![Mark { at: 10.0, text: "0 → 1: <script>".to_owned() }],
            line: None,
        };
        let drawn = panel.draw(0).into_string();
        assert!(drawn.contains("&lt;script&gt;") && drawn.contains("1 &lt;ready&gt;"), "{drawn}");
    }
}
