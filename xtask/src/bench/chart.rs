//! The comparison's chart: costs, grouped by the number of prefixes, on a logarithmic scale.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::coord::Shift;
use plotters::prelude::*;

use super::filters::Filter;
use super::thousands;
use super::wired::{Comparison, Floor, Row};

/// A drawing area of an SVG file.
type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Width and height, in pixels.
const SIZE: (u32, u32) = (1_100, 760);
/// The height of the legend.
const LEGEND: u32 = 70;

/// Draws the chart to an SVG file.
///
/// # Errors
/// The file cannot be written.
pub(super) fn draw(comparison: &Comparison, path: &Path) -> Result<()> {
    let root = SVGBackend::new(path, SIZE).into_drawing_area();
    plot(comparison, &root)
        .map_err(|error| anyhow!("the chart {} cannot be drawn: {error}", path.display()))
}

fn plot(comparison: &Comparison, root: &Area<'_>) -> Result<(), Box<dyn std::error::Error>> {
    root.fill(&WHITE)?;
    let (charts, legend) = root.split_vertically(SIZE.1 - LEGEND);
    let versions = comparison.versions();
    let panels = charts.split_evenly((versions.len().max(1), 2));
    for (ip, panels) in versions.into_iter().zip(panels.chunks(2)) {
        for (hit, area) in [true, false].into_iter().zip(panels) {
            panel(comparison, ip, hit, area)?;
        }
    }
    for (number, filter) in Filter::ALL.into_iter().enumerate() {
        let (column, line) = (number % 3, number / 3);
        let (x, y) = (60 + 350 * column as i32, 10 + 26 * line as i32);
        let square = Rectangle::new([(x, y), (x + 14, y + 14)], color(filter).filled());
        legend.draw(&square)?;
        legend.draw(&Text::new(filter.title(), (x + 22, y), ("sans-serif", 15)))?;
    }
    root.present()?;
    Ok(())
}

fn panel(
    comparison: &Comparison,
    ip: u8,
    hit: bool,
    area: &Area<'_>,
) -> Result<(), Box<dyn std::error::Error>> {
    let (floors, rows) = comparison.of(ip);
    let cost = |row: &Row| if hit { row.hit } else { row.miss }.nanoseconds;
    let least = |floor: &Floor| if hit { floor.drop } else { floor.pass }.nanoseconds;
    let what = if hit { "dropped" } else { "passed" };
    let most = rows.iter().map(|row| cost(row)).fold(0.0, f64::max);
    let sizes: BTreeSet<usize> = rows.iter().map(|row| row.prefixes).collect();
    let sizes: Vec<_> = sizes.into_iter().collect();
    let bottom = 50.0;
    let mut chart = ChartBuilder::on(area)
        .caption(
            format!("IPv{ip}, {what}: CPU ns a packet (line: the floor)"),
            ("sans-serif", 17),
        )
        .margin(10)
        .x_label_area_size(34)
        .y_label_area_size(56)
        .build_cartesian_2d(
            0.0..sizes.len() as f64,
            (bottom..most.max(bottom) * 1.3).log_scale(),
        )?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .x_labels(0)
        .x_desc("prefixes blocked")
        .y_label_formatter(&|nanoseconds| format!("{nanoseconds:.0}"))
        .draw()?;
    let width = 0.8 / Filter::ALL.len() as f64;
    for (group, size) in sizes.iter().enumerate() {
        let left = group as f64 + 0.1;
        for (number, filter) in Filter::ALL.into_iter().enumerate() {
            let row = rows
                .iter()
                .find(|row| row.filter == filter && row.prefixes == *size);
            let Some(row) = row else { continue };
            let from = left + width * number as f64;
            let bar = [(from, bottom), (from + width * 0.92, cost(row))];
            let bar = Rectangle::new(bar, color(filter).filled());
            chart.draw_series(std::iter::once(bar))?;
        }
        let label = Text::new(
            thousands(*size as u64),
            (group as f64 + 0.42, most.max(bottom) * 1.25),
            ("sans-serif", 14),
        );
        chart.draw_series(std::iter::once(label))?;
        let floor = floors.iter().find(|floor| floor.prefixes == *size);
        if let Some(least) = floor.map(|floor| least(floor)) {
            let line = [(group as f64, least), (group as f64 + 1.0, least)];
            chart.draw_series(LineSeries::new(line, BLACK.stroke_width(1)))?;
        }
    }
    Ok(())
}

/// blocker in blue, its peers in other colours.
fn color(filter: Filter) -> RGBColor {
    match filter {
        Filter::BlockerXdp => RGBColor(31, 90, 180),
        Filter::BlockerBare => RGBColor(80, 155, 215),
        Filter::BlockerTc => RGBColor(130, 180, 240),
        Filter::XdpTools => RGBColor(60, 150, 80),
        Filter::NftHash => RGBColor(240, 170, 60),
        Filter::NftInterval => RGBColor(210, 90, 40),
        Filter::Ipset => RGBColor(150, 110, 170),
    }
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::comparison;
    use super::*;

    #[test]
    fn a_bar_is_drawn_for_every_row_twice() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("chart.svg");
        let comparison = comparison();
        draw(&comparison, &path).unwrap();
        let svg = std::fs::read_to_string(&path).unwrap();
        // Besides, one for the background, and one for each filter in the legend.
        let bars = svg.matches("<rect ").count();
        assert_eq!(bars, 1 + 2 * comparison.rows.len() + Filter::ALL.len());
    }
}
