//! The picture of a run: loss over steps, and below it the load of each layer's experts over time.
//!
//! The font is built in, so the picture is the same on machines without any.

use super::history::History;
use crate::entropy::Entropy;
use anyhow::{Context, Result, anyhow};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use std::path::Path;
use std::sync::Once;

const FONT: &[u8] = include_bytes!("../../data/roboto_ascii.ttf");
const WIDTH: u32 = 1200;
const LOSS_HEIGHT: u32 = 460;
const LAYER_HEIGHT: u32 = 210;
/// Columns of a heat map at most; longer runs show means of neighbouring steps.
const COLUMNS: usize = 240;
const INK: RGBColor = RGBColor(40, 40, 48);
const FAINT: RGBColor = RGBColor(205, 208, 214);
const LOSS: RGBColor = RGBColor(31, 93, 168);
const UNIGRAM: RGBColor = RGBColor(200, 80, 40);
const BIGRAM: RGBColor = RGBColor(190, 140, 0);
const HELD_OUT: RGBColor = RGBColor(20, 130, 80);

type Area<'a> = DrawingArea<BitMapBackend<'a>, Shift>;

/// What stands in the picture.
pub struct Picture<'a> {
    /// the course of the run
    pub history: &'a History,
    /// the figures of counting, drawn as lines
    pub entropy: Entropy,
    /// the held-out loss at the end, in bits per byte
    pub held_out: f64,
    /// what balancing was at work
    pub balance: &'a str,
}

impl Picture<'_> {
    /// Draws the picture and writes it as PNG.
    ///
    /// # Errors
    /// If the run has no steps, or the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        let height = LOSS_HEIGHT + LAYER_HEIGHT * self.history.layers as u32;
        let mut pixels = vec![255; (WIDTH * height * 3) as usize];
        self.draw(&mut pixels, height).map_err(|error| anyhow!("cannot draw the picture: {error}"))?;
        encode(path, &pixels, height).with_context(|| format!("cannot write {}", path.display()))
    }

    fn draw(&self, pixels: &mut [u8], height: u32) -> Result<(), Box<dyn std::error::Error + '_>> {
        if self.history.steps() == 0 {
            return Err("the run has no steps".into());
        }
        register_font();
        let root = BitMapBackend::with_buffer(pixels, (WIDTH, height)).into_drawing_area();
        root.fill(&WHITE)?;
        let (top, below) = root.split_vertically(LOSS_HEIGHT);
        self.draw_loss(&top)?;
        for (layer, area) in below.split_evenly((self.history.layers, 1)).iter().enumerate() {
            let (map, key) = area.split_horizontally(WIDTH - 130);
            self.draw_load(layer, &map)?;
            draw_key(&key)?;
        }
        root.present()?;
        Ok(())
    }

    fn draw_loss(&self, area: &Area<'_>) -> Result<(), Box<dyn std::error::Error + '_>> {
        let bits: Vec<f64> =
            self.history.loss.iter().map(|&nats| f64::from(nats) / std::f64::consts::LN_2).collect();
        let steps = bits.len() as f64;
        let finite = || bits.iter().copied().filter(|bits| bits.is_finite());
        let lowest = finite().fold(self.held_out.min(self.entropy.bigram), f64::min);
        let highest = finite().fold(self.entropy.unigram, f64::max);
        let mut chart = ChartBuilder::on(area)
            .caption("Loss", font(26))
            .margin_right(130)
            .margin_left(14)
            .margin_top(8)
            .x_label_area_size(48)
            .y_label_area_size(74)
            .build_cartesian_2d(0.0..steps, (lowest - 0.25).floor().max(0.0)..highest.ceil())?;
        chart
            .configure_mesh()
            .light_line_style(WHITE)
            .bold_line_style(FAINT)
            .axis_style(INK)
            .x_desc("step")
            .y_desc("bits per byte")
            .label_style(font(17))
            .axis_desc_style(font(19))
            .x_label_formatter(&|step| format!("{step:.0}"))
            .y_label_formatter(&|bits| format!("{bits:.1}"))
            .draw()?;
        for (name, value, color) in [
            ("unigram entropy", self.entropy.unigram, UNIGRAM),
            ("bigram entropy", self.entropy.bigram, BIGRAM),
        ] {
            let line = [(0.0, value), (steps, value)];
            chart
                .draw_series(DashedLineSeries::new(line, 8, 5, color.stroke_width(2)))?
                .label(format!("{name} {value:.2}"))
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 26, y)], color.stroke_width(2)));
        }
        let points = bits.iter().enumerate().map(|(step, &bits)| (step as f64 + 1.0, bits));
        chart
            .draw_series(LineSeries::new(points.filter(|point| point.1.is_finite()), LOSS.stroke_width(2)))?
            .label("training loss")
            .legend(|(x, y)| PathElement::new([(x, y), (x + 26, y)], LOSS.stroke_width(2)));
        chart
            .draw_series([Circle::new((steps, self.held_out), 6, HELD_OUT.filled())])?
            .label(format!("held-out loss {:.2}", self.held_out))
            .legend(|(x, y)| Circle::new((x + 13, y), 6, HELD_OUT.filled()));
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperRight)
            .margin(14)
            .legend_area_size(34)
            .background_style(WHITE.mix(0.9))
            .border_style(FAINT)
            .label_font(font(18))
            .draw()?;
        Ok(())
    }

    fn draw_load(&self, layer: usize, area: &Area<'_>) -> Result<(), Box<dyn std::error::Error + '_>> {
        let (steps, experts) = (self.history.steps(), self.history.experts);
        let columns = steps.min(COLUMNS);
        let mut chart = ChartBuilder::on(area)
            .caption(format!("Layer {layer}: load per expert (balance: {})", self.balance), font(20))
            .margin_left(14)
            .margin_top(8)
            .x_label_area_size(44)
            .y_label_area_size(74)
            .build_cartesian_2d(0.0..steps as f64, -0.5..experts as f64 - 0.5)?;
        chart
            .configure_mesh()
            .disable_mesh()
            .axis_style(INK)
            .x_desc("step")
            .y_desc("expert")
            .y_labels(experts.min(8))
            .label_style(font(17))
            .axis_desc_style(font(19))
            .x_label_formatter(&|step| format!("{step:.0}"))
            .y_label_formatter(&|expert| {
                if expert.fract() == 0.0 { format!("{expert:.0}") } else { String::new() }
            })
            .draw()?;
        let edge = |column: usize| column * steps / columns;
        chart.draw_series((0..columns).flat_map(|column| {
            let (from, to) = (edge(column), edge(column + 1));
            (0..experts).map(move |expert| {
                let load = self.history.relative_load(layer, expert, from, to);
                let (low, high) = (expert as f64 - 0.5, expert as f64 + 0.5);
                let corners = [(from as f64, low), (to as f64, high)];
                Rectangle::new(corners, heat(load).filled())
            })
        }))?;
        Ok(())
    }
}

/// The colours of the heat maps: a bar with its scale.
fn draw_key(area: &Area<'_>) -> Result<(), Box<dyn std::error::Error>> {
    let (top, bottom, left, right) = (40, LAYER_HEIGHT as i32 - 52, 22, 44);
    for y in top..bottom {
        let load = 2.0 * f64::from(bottom - 1 - y) / f64::from(bottom - 1 - top);
        area.draw(&Rectangle::new([(left, y), (right, y + 1)], heat(load).filled()))?;
    }
    area.draw(&Rectangle::new([(left, top), (right, bottom)], INK.stroke_width(1)))?;
    let style = font(16).color(&INK).pos(Pos::new(HPos::Left, VPos::Center));
    for (text, y) in [("2x or more", top), ("even share", (top + bottom) / 2), ("none", bottom)] {
        area.draw(&Text::new(text, (right + 6, y), style.clone()))?;
    }
    Ok(())
}

/// Blue for less than the even share, white for it, red for more; 2 and above look the same.
fn heat(load: f64) -> RGBColor {
    const LESS: [f64; 3] = [33.0, 75.0, 150.0];
    const MORE: [f64; 3] = [178.0, 34.0, 34.0];
    let distance = (load - 1.0).clamp(-1.0, 1.0);
    let end = if distance < 0.0 { LESS } else { MORE };
    let [r, g, b] = end.map(|end| (245.0 + (end - 245.0) * distance.abs()).round() as u8);
    RGBColor(r, g, b)
}

fn font(size: i32) -> TextStyle<'static> {
    ("sans-serif", size).into_font().color(&INK)
}

fn register_font() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // The only error is a font that cannot be parsed; then drawing the first label says so.
        let _ = plotters::style::register_font("sans-serif", FontStyle::Normal, FONT);
    });
}

fn encode(path: &Path, pixels: &[u8], height: u32) -> Result<()> {
    let file = std::fs::File::create(path)?;
    let mut encoder = png::Encoder::new(std::io::BufWriter::new(file), WIDTH, height);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    let mut writer = encoder.write_header()?;
    writer.write_image_data(pixels)?;
    writer.finish()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use moe_core::Figures;

    fn picture(history: &History) -> Picture<'_> {
        Picture { history, entropy: Entropy { unigram: 4.4, bigram: 3.5 }, held_out: 2.6, balance: "bias" }
    }

    /// A run of 700 steps whose load starts in one expert and evens out.
    fn run() -> History {
        let mut history = History::new(2, 8);
        for step in 0..700_u32 {
            let spread = |layer: u32| Figures {
                tokens_per_expert: (0..8)
                    .map(|e| 200 + 4000 / (1 + step / 9) * u32::from(e == layer))
                    .collect(),
                ..Figures::default()
            };
            history.push(5.5 / (1.0 + f64::from(step) / 60.0) + 1.7, &[spread(2), spread(5)]);
        }
        history
    }

    #[test]
    fn a_run_is_drawn_and_written() {
        let path = std::env::temp_dir().join(format!("moe-picture-{}.png", std::process::id()));
        picture(&run()).write(&path).unwrap();
        let decoder = png::Decoder::new(std::io::BufReader::new(std::fs::File::open(&path).unwrap()));
        let info = decoder.read_info().unwrap().info().clone();
        assert_eq!((info.width, info.height), (WIDTH, LOSS_HEIGHT + 2 * LAYER_HEIGHT));
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn short_and_broken_runs_are_drawn_too() {
        let mut history = History::new(1, 3);
        history.push(f64::NAN, &[Figures { tokens_per_expert: vec![0; 3], ..Figures::default() }]);
        let path = std::env::temp_dir().join(format!("moe-picture-nan-{}.png", std::process::id()));
        picture(&history).write(&path).unwrap();
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn a_run_without_steps_is_an_error() {
        let error = picture(&History::new(1, 3)).write(Path::new("none.png")).unwrap_err();
        assert!(error.to_string().contains("no steps"), "{error}");
    }

    #[test]
    fn the_even_share_is_pale_and_the_ends_differ() {
        assert_eq!(heat(1.0), RGBColor(245, 245, 245));
        assert_ne!(heat(0.0), heat(2.0));
        assert_eq!(heat(2.0), heat(9.0));
    }
}
