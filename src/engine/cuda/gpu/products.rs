//! Matrix products of linear layers, by cuBLASLt.

use std::collections::hash_map::Entry;
use std::ffi::c_void;
use std::fmt;
use std::sync::{Arc, PoisonError};

use cudarc::cublaslt::{result as lt, sys as blas};

use super::{Gpu, View, WORKSPACE, broken};
use crate::engine::Products;
use crate::error::Result;

/// A matrix product of a linear layer with a weight `[out, in]`; all matrices are row-major.
#[derive(Clone, Copy)]
pub enum Product {
    /// `y = x W^T + b`.
    Forward { x: View, weight: View, bias: Option<View>, y: View },
    /// `dx = dy W`, added to what is there or not.
    ToInput { dy: View, weight: View, dx: View, add: bool },
    /// `dW += dy^T x`.
    ToWeight { dy: View, x: View, dweight: View },
}

/// What products have in common that are computed in the same way.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Shape {
    /// Rows, columns and sums of cuBLASLt's product.
    pub size: [usize; 3],
    transposed: [bool; 2],
    pub add: bool,
    pub bias: bool,
    /// Bytes that the addresses of operands and result are multiples of.
    alignments: [u32; 3],
    products: Products,
}

impl fmt::Display for Shape {
    /// As checkpoints name it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { size: [m, n, k], transposed, add, bias, alignments, products } = self;
        let turned = transposed.map(|turned| if turned { 't' } else { 'n' });
        let [a, b, d] = alignments;
        write!(f, "{m}x{n}x{k} {}{} {}", turned[0], turned[1], products.name())?;
        write!(f, "{}{}", if *add { " added" } else { "" }, if *bias { " bias" } else { "" })?;
        write!(f, " at {a},{b},{d}")
    }
}

#[derive(Clone, Copy)]
pub(super) struct Prepared {
    desc: blas::cublasLtMatmulDesc_t,
    layouts: [blas::cublasLtMatrixLayout_t; 3],
    pub algo: blas::cublasLtMatmulAlgo_t,
}

impl Prepared {
    /// The same product by another algorithm.
    pub fn by(self, algo: blas::cublasLtMatmulAlgo_t) -> Self {
        Self { algo, ..self }
    }
}

/// Algorithms that cuBLASLt is asked for.
const CANDIDATES: usize = 8;

impl Gpu {
    /// A matrix product of a linear layer; `sizes` are rows, outputs and inputs. In bf16 and TF32 the
    /// factors are rounded on their way; sums are in f32 in any case.
    ///
    /// # Errors
    /// The device failed.
    pub fn multiply(
        self: &Arc<Self>,
        sizes: [usize; 3],
        product: Product,
        products: Products,
    ) -> Result<()> {
        let [rows, out, inner] = sizes;
        // Row-major matrices are the transposed ones in columns, as cuBLASLt counts.
        let (a, b, d, size, add, bias) = match product {
            Product::Forward { x, weight, bias, y } => {
                (weight, x, y, [out, rows, inner], false, bias)
            }
            Product::ToInput { dy, weight, dx, add } => {
                (weight, dy, dx, [inner, rows, out], add, None)
            }
            Product::ToWeight { dy, x, dweight } => {
                (x, dy, dweight, [inner, out, rows], true, None)
            }
        };
        let [m, n, k] = size;
        assert!(a.len >= m * k && b.len >= n * k && d.len >= m * n, "{sizes:?} of a product");
        let transposed = match product {
            Product::Forward { .. } => [true, false],
            Product::ToInput { .. } => [false, false],
            Product::ToWeight { .. } => [false, true],
        };
        let alignments = [a, b, d].map(|view| 1 << view.at.trailing_zeros().min(8));
        let bias_too = bias.is_some();
        let shape = Shape { size, transposed, add, bias: bias_too, alignments, products };
        let mut known = self.products.lock().unwrap_or_else(PoisonError::into_inner);
        let prepared = match known.entry(shape) {
            Entry::Occupied(there) => there.into_mut(),
            Entry::Vacant(new) => {
                let prepared = self.prepare(new.key());
                let (first, others) = prepared.map_err(|e| broken("a matrix product", e))?;
                let chosen = self.choose(new.key(), first, &others)?;
                new.insert(chosen)
            }
        };
        self.run(prepared, [a, b, d], add, bias).map_err(|e| broken("a matrix product", e))
    }

    pub(super) fn run(
        &self,
        prepared: &Prepared,
        [a, b, d]: [View; 3],
        add: bool,
        bias: Option<View>,
    ) -> std::result::Result<(), lt::CublasError> {
        let (one, beta) = (1f32, if add { 1f32 } else { 0.0 });
        let Prepared { desc, layouts, algo } = prepared;
        let scalar = |value: &f32| std::ptr::from_ref(value).cast::<c_void>();
        // SAFETY: descriptions are alive, made for these sizes; scalars and the bias's address are read
        // before the calls return. Nobody else changes the description: `multiply` holds the lock.
        unsafe {
            if let Some(bias) = bias {
                let attribute =
                    blas::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_BIAS_POINTER;
                let at = std::ptr::from_ref(&bias.at).cast();
                lt::set_matmul_desc_attribute(*desc, attribute, at, size_of::<u64>())?;
            }
            let d_at = d.at as *mut c_void;
            lt::matmul(
                self.blas,
                *desc,
                scalar(&one),
                scalar(&beta),
                a.at as *const c_void,
                layouts[0],
                b.at as *const c_void,
                layouts[1],
                d_at,
                layouts[2],
                d_at,
                layouts[2],
                algo,
                self.workspace as *mut c_void,
                WORKSPACE,
                self.stream.cast(),
            )
        }
    }

    /// How cuBLASLt would compute products of a shape, and what it could do as well, the first one included.
    fn prepare(
        &self,
        shape: &Shape,
    ) -> std::result::Result<(Prepared, Vec<blas::cublasLtMatmulAlgo_t>), lt::CublasError> {
        use blas::cublasLtMatmulDescAttributes_t as A;
        use blas::cublasLtMatmulPreferenceAttributes_t as P;
        const BIAS: u32 = blas::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS as u32;
        let f32s = blas::cudaDataType_t::CUDA_R_32F;
        let &Shape { size: [m, n, k], transposed, bias, alignments, products, .. } = shape;
        let compute = match products {
            Products::F32 => blas::cublasComputeType_t::CUBLAS_COMPUTE_32F,
            Products::Tf32 => blas::cublasComputeType_t::CUBLAS_COMPUTE_32F_FAST_TF32,
            Products::Bf16 => blas::cublasComputeType_t::CUBLAS_COMPUTE_32F_FAST_16BF,
        };
        let layout = |turned: bool, rows: usize, columns: usize| {
            let (rows, columns) = if turned { (columns, rows) } else { (rows, columns) };
            lt::create_matrix_layout(f32s, rows as u64, columns as u64, rows as i64)
        };
        let layouts =
            [layout(transposed[0], m, k)?, layout(transposed[1], k, n)?, layout(false, m, n)?];
        let desc = lt::create_matmul_desc(compute, f32s)?;
        let preference = lt::create_matmul_pref()?;
        // SAFETY: descriptions were just made; attributes are read before the calls return and are of the
        // size that cuBLASLt's reference gives for them.
        unsafe {
            let set = |attribute, value: u32| {
                let at = std::ptr::from_ref(&value).cast();
                lt::set_matmul_desc_attribute(desc, attribute, at, size_of::<u32>())
            };
            set(A::CUBLASLT_MATMUL_DESC_TRANSA, transposed[0].into())?;
            set(A::CUBLASLT_MATMUL_DESC_TRANSB, transposed[1].into())?;
            if bias {
                set(A::CUBLASLT_MATMUL_DESC_EPILOGUE, BIAS)?;
            }
            let workspace = P::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
            let at = std::ptr::from_ref(&WORKSPACE).cast();
            lt::set_matmul_pref_attribute(preference, workspace, at, size_of::<usize>())?;
            let [a, b, d] = alignments;
            for (attribute, bytes) in [
                (P::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, a),
                (P::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, b),
                (P::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, d),
                (P::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, d),
            ] {
                let at = std::ptr::from_ref(&bytes).cast();
                lt::set_matmul_pref_attribute(preference, attribute, at, size_of::<u32>())?;
            }
            let [a, b, d] = layouts;
            let nothing = blas::cublasLtMatmulHeuristicResult_t {
                algo: blas::cublasLtMatmulAlgo_t { data: [0; 8] },
                workspaceSize: 0,
                state: blas::cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED,
                wavesCount: 0.0,
                reserved: [0; 4],
            };
            let (mut found, mut count) = ([nothing; CANDIDATES], 0);
            blas::cublasLtMatmulAlgoGetHeuristic(
                self.blas,
                desc,
                a,
                b,
                d,
                d,
                preference,
                CANDIDATES as i32,
                found.as_mut_ptr(),
                &mut count,
            )
            .result()?;
            lt::destroy_matmul_pref(preference)?;
            let found = found.iter().take(count as usize);
            let usable = found.filter(|found| found.state.result().is_ok());
            let algorithms: Vec<_> = usable.map(|found| found.algo).collect();
            let none = lt::CublasError(blas::cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED);
            let algo = *algorithms.first().ok_or(none)?;
            Ok((Prepared { desc, layouts, algo }, algorithms))
        }
    }
}
