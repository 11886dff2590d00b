//! What the ops' definitions must have in common: inverse orders, conservation, transposes, slopes.

mod combine;
mod experts;
mod merge;
mod optimizer;
mod route;
mod route_bwd;
mod run;
mod sort;
mod values;
