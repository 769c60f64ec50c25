//! Pictures: commands a second and latency over queue depth.

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::prelude::*;

use crate::plan::Plan;
use crate::report::Results;
use crate::sample::Series;

const SIZE: (u32, u32) = (1100, 700);

/// What is on the vertical axis.
#[derive(Clone, Copy)]
pub enum Axis {
    /// Thousand commands a second.
    Iops,
    /// Microseconds.
    Latency,
}

impl Axis {
    /// For the name of the file.
    pub fn name(self) -> &'static str {
        match self {
            Self::Iops => "iops",
            Self::Latency => "latency",
        }
    }

    fn label(self) -> &'static str {
        match self {
            Self::Iops => "thousand commands a second",
            Self::Latency => "mean latency in microseconds",
        }
    }

    /// Where few lines pass.
    fn corner(self) -> SeriesLabelPosition {
        match self {
            Self::Iops => SeriesLabelPosition::LowerRight,
            Self::Latency => SeriesLabelPosition::UpperLeft,
        }
    }

    /// With `out` commands out at a time on all pairs.
    fn value(self, series: &Series, out: u32) -> f64 {
        match self {
            Self::Iops => series.iops() / 1000.0,
            Self::Latency => series.latency(out),
        }
    }
}

/// Draws one place's figures as SVG.
///
/// # Errors
/// The file cannot be written.
pub fn draw(plan: &Plan, results: &Results, axis: Axis, path: &Path) -> Result<()> {
    let failed = |error| anyhow!("{}: {error}", path.display());
    let points = |row: &crate::report::Row| -> Vec<(u32, f64)> {
        let depths = plan.depths.iter().zip(&row.depths);
        depths
            .map(|(depth, series)| (*depth, axis.value(series, *depth * plan.pairs)))
            .collect()
    };
    let all = || results.rows.iter().flat_map(points);
    let top = all().map(|(_, value)| value).fold(0.0, f64::max) * 1.1;
    let bottom = all().map(|(_, value)| value).fold(f64::INFINITY, f64::min) * 0.9;
    let last = plan.depths.iter().copied().max().unwrap_or(1) + 1;

    let root = SVGBackend::new(path, SIZE).into_drawing_area();
    root.fill(&WHITE)
        .map_err(|error| failed(error.to_string()))?;
    let title = format!("{}: {}", results.place, plan.load());
    let mut chart = ChartBuilder::on(&root)
        .caption(title, ("sans-serif", 24))
        .margin(16)
        .x_label_area_size(48)
        .y_label_area_size(80)
        .build_cartesian_2d((1..last).log_scale(), (bottom..top).log_scale())
        .map_err(|error| failed(error.to_string()))?;
    chart
        .configure_mesh()
        .x_desc("queue depth of each pair")
        .y_desc(axis.label())
        .bold_line_style(BLACK.mix(0.15))
        .light_line_style(BLACK.mix(0.05))
        .draw()
        .map_err(|error| failed(error.to_string()))?;
    for (index, row) in results.rows.iter().enumerate() {
        let color = Palette99::pick(index).to_rgba();
        let style = color.stroke_width(if row.name.starts_with("berth") { 3 } else { 1 });
        chart
            .draw_series(LineSeries::new(points(row), style).point_size(3))
            .map_err(|error| failed(error.to_string()))?
            .label(&row.name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], style));
    }
    chart
        .configure_series_labels()
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK)
        .position(axis.corner())
        .draw()
        .map_err(|error| failed(error.to_string()))?;
    root.present().map_err(|error| failed(error.to_string()))
}
