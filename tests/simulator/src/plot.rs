//! The outcome as a picture (SVG): orders by hour, and names without a certificate.

use std::fmt::Write as _;

use crate::report::{Hour, Outcome};

const WIDTH: f64 = 1000.0;
const HEIGHT: f64 = 220.0;
const LEFT: f64 = 70.0;
const TOP: f64 = 40.0;
const GAP: f64 = 70.0;

/// Name, colour, and the value of an hour.
type Line<'a> = (&'a str, &'a str, &'a dyn Fn(&Hour) -> f64);

/// The picture.
pub fn svg(outcome: &Outcome) -> String {
    let (width, height) = (LEFT + WIDTH + 30.0, TOP + 2.0 * HEIGHT + GAP + 60.0);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" font-size=\"13\">\n\
         <rect width=\"{width}\" height=\"{height}\" fill=\"white\"/>\n"
    );
    let orders = |hour: &Hour| f64::from(hour.orders);
    let replacing = |hour: &Hour| f64::from(hour.replacing);
    let top = TOP;
    let lines: [Line<'_>; 2] = [("orders", "#1f5fa8", &orders), ("of them replacing", "#e08a1e", &replacing)];
    chart(&mut svg, outcome, top, "Orders in an hour", &lines);
    #[expect(clippy::cast_precision_loss, reason = "a number of names")]
    let without = |hour: &Hour| hour.without as f64;
    let lines: [Line<'_>; 1] = [("names", "#b03a2e", &without)];
    chart(&mut svg, outcome, top + HEIGHT + GAP, "Names that point here and have no certificate yet", &lines);
    svg.push_str("</svg>\n");
    svg
}

fn chart(svg: &mut String, outcome: &Outcome, top: f64, title: &str, lines: &[Line<'_>]) {
    let hours = &outcome.hours;
    let most = lines.iter().flat_map(|(_, _, of)| hours.iter().map(of)).fold(1.0, f64::max);
    #[expect(clippy::cast_precision_loss, reason = "some thousand hours")]
    let x = |index: usize| LEFT + WIDTH * index as f64 / hours.len().max(1) as f64;
    let bottom = top + HEIGHT;
    let _ = writeln!(svg, "<text x=\"{LEFT}\" y=\"{}\" font-size=\"15\">{title}</text>", top - 12.0);
    let _ =
        writeln!(svg, "<path d=\"M{LEFT} {top}V{bottom}H{}\" stroke=\"#444\" fill=\"none\"/>", LEFT + WIDTH);
    for (share, y) in [(1.0, top), (0.5, top + HEIGHT / 2.0), (0.0, bottom)] {
        let _ = writeln!(
            svg,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{:.0}</text>",
            LEFT - 8.0,
            y + 4.0,
            most * share
        );
    }
    for (index, _) in hours.iter().enumerate().step_by(24 * 10) {
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">day {}</text>",
            x(index),
            bottom + 18.0,
            index / 24
        );
    }
    for (place, (name, colour, of)) in lines.iter().enumerate() {
        let mut path = String::new();
        for (index, hour) in hours.iter().enumerate() {
            let step = if index == 0 { 'M' } else { 'L' };
            let _ = write!(path, "{step}{:.1} {:.1}", x(index), bottom - HEIGHT * of(hour) / most);
        }
        let _ = writeln!(svg, "<path d=\"{path}\" stroke=\"{colour}\" fill=\"none\"/>");
        #[expect(clippy::cast_precision_loss, reason = "one or two lines")]
        let at = LEFT + WIDTH - 160.0 * (lines.len() - place) as f64;
        let _ = writeln!(svg, "<text x=\"{at}\" y=\"{}\" fill=\"{colour}\">{name}</text>", top - 12.0);
    }
}
