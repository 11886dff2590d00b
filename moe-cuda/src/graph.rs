//! Graphs: a captured step, replayed in one call.

use crate::buffer::Block;
use crate::driver::check;
use crate::error::CudaError;
use crate::stream::Stream;
use cudarc::driver::sys::{self, CUgraph, CUgraphExec};
use moe_core::OpId;
use std::ptr::null_mut;
use std::sync::Arc;

/// A step that was captured with [`Stream::capture`]. Replaying it runs the same launches on the same buffers, with what is in
/// them then: other tokens give another routing.
pub struct Graph {
    raw: CUgraphExec,
    stream: Stream,
    parts: Vec<Part>,
}

/// Memory that a graph uses.
pub(crate) struct Part {
    pub(crate) block: Arc<Block>,
    pub(crate) written: bool,
}

// SAFETY: the driver takes calls from any thread; `replay` needs `&mut`, so that there is one at a time.
unsafe impl Send for Graph {}

impl Graph {
    pub(crate) fn new(stream: &Stream, graph: CUgraph, parts: Vec<Part>) -> Result<Self, CudaError> {
        let mut raw = null_mut();
        // SAFETY: the graph was just made; the driver copies what it needs of it.
        let made = unsafe {
            let made = check("cuGraphInstantiate", sys::cuGraphInstantiateWithFlags(&mut raw, graph, 0));
            let freed = check("cuGraphDestroy", sys::cuGraphDestroy(graph));
            made.and(freed)
        };
        made.map(|()| Self { raw, stream: stream.clone(), parts })
    }

    /// Puts the step on its stream.
    ///
    /// # Errors
    /// [`CudaError::Stream`] if another stream may still be using one of its buffers; the driver's.
    pub fn replay(&mut self) -> Result<(), CudaError> {
        let work = self.stream.work_outside_capture("a graph")?;
        if !self.parts.iter().all(|part| part.block.used(&work, part.written)) {
            return Err(CudaError::Stream { op: OpId("graph"), what: "a buffer" });
        }
        // SAFETY: the graph and all its buffers live as long as `self`.
        check("cuGraphLaunch", unsafe { sys::cuGraphLaunch(self.raw, self.stream.0.raw) })
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // The buffers are freed behind the stream's work, but the graph itself must not be in use.
        let _ = self.stream.sync();
        // SAFETY: nobody else has it. A failure leaves nothing to do.
        let _ = self.stream.0.context.bind().map(|()| unsafe { sys::cuGraphExecDestroy(self.raw) });
    }
}
