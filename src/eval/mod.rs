//! How good a model is: inference over a split, metrics with intervals, k-NN on features.

pub mod health;
pub mod infer;
pub mod knn;
pub mod metric;
pub mod probe;
pub mod spectrum;
