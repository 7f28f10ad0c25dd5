//! A model on a card that is asked and not trained.

use std::sync::{Arc, Mutex, PoisonError};

use super::gpu::{Gpu, Memory};
use super::inputs::Inputs;
use super::network::{Factors, Network, Parameters};
use super::vectors::Vectors;
use crate::backbone::NetSpec;
use crate::engine::{Model, Outputs};
use crate::error::Result;

/// Images that pass through it at a time.
const IMAGES: usize = 256;

/// Weights and memory on a card.
pub struct CudaModel {
    spec: NetSpec,
    vectors: Vectors,
    weights: Memory,
    /// One at a time: its memory is that of one pass.
    pass: Mutex<(Network, Inputs)>,
}

impl CudaModel {
    /// The model `spec` with the given weights.
    ///
    /// # Errors
    /// Not enough memory, an img-size that the backbone cannot take.
    pub fn new(gpu: &Arc<Gpu>, spec: &NetSpec, values: &[f32]) -> Result<Self> {
        let _turn = gpu.turn()?;
        let vectors = Vectors::new(&spec.parameters()?);
        let weights = vectors.send(gpu, values)?;
        let plan = spec.plan(spec.heads.num_classes > 0)?;
        let network = Network::asking(gpu, plan, IMAGES, vectors.len)?;
        let inputs = Inputs::asking(gpu, spec.img_size, network.images)?;
        Ok(Self { spec: *spec, vectors, weights, pass: Mutex::new((network, inputs)) })
    }
}

impl Model for CudaModel {
    fn spec(&self) -> &NetSpec {
        &self.spec
    }

    fn outputs(&self, images: Vec<f32>) -> Result<Outputs> {
        let pass = self.pass.lock().unwrap_or_else(PoisonError::into_inner);
        let (network, inputs) = &*pass;
        let gpu = network.gpu();
        let _turn = gpu.turn()?;
        let of_image = 3 * self.spec.img_size.pow(2);
        let of = Parameters { vectors: &self.vectors, weights: self.weights.view() };
        let mut outputs = Outputs::default();
        for planes in images.chunks(network.images * of_image) {
            let count = planes.len() / of_image;
            inputs.planes(planes, network.value(network.pixels(), count))?;
            network.forward(of, &Factors::default(), count)?;
            let read = |id| gpu.download::<f32>(network.value(id, count));
            outputs.features.extend(read(network.features)?);
            if let Some(logits) = network.logits {
                outputs.logits.extend(read(logits)?);
            }
        }
        Ok(outputs)
    }
}
