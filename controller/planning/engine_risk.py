"""Risk of a changed engine argument: whether it can change or cut an answer, or changes throughput alone.

The two lists below hold what is known to be harmless. An argument on neither can change an answer until
someone shows otherwise, and an argument that no list of vLLM's knows even more so.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal, TypeAlias

ArgumentClass: TypeAlias = Literal["throughput", "sampling", "answers"]

# Batch sizes, memory, parallelism, caches, kernels' graphs, logs, metrics and the HTTP server.
THROUGHPUT = frozenset(
    {
        *("max_num_seqs", "max_num_batched_tokens", "max_num_scheduled_tokens", "max_num_active_seqs"),
        *(
            "long_prefill_token_threshold",
            "long_prefill_token_threshold_adaptive",
        ),
        *("prefill_schedule_interval", "scheduling_policy", "scheduler_reserve_full_isl", "watermark"),
        *("enable_chunked_prefill", "disable_chunked_mm_input", "async_scheduling", "stream_interval"),
        *("gpu_memory_utilization", "kv_cache_memory_bytes", "num_gpu_blocks_override", "block_size"),
        *("enable_prefix_caching", "prefix_caching_hash_algo", "prefix_cache_retention_interval"),
        *("kv_offloading_size", "kv_offloading_backend", "offload_backend", "cpu_offload_gb"),
        *("cpu_offload_params", "offload_group_size", "offload_num_in_group", "offload_prefetch_step"),
        *("offload_params", "tensor_parallel_size", "pipeline_parallel_size", "decode_context_parallel_size"),
        *("prefill_context_parallel_size", "data_parallel_size", "data_parallel_size_local"),
        *("data_parallel_backend", "distributed_executor_backend", "distributed_timeout_seconds"),
        *("max_parallel_loading_workers", "disable_custom_all_reduce", "enable_expert_parallel"),
        *("enable_eplb", "eplb_config", "expert_placement_strategy", "numa_bind", "numa_bind_nodes"),
        *("numa_bind_cpus", "device_ids", "enforce_eager", "cudagraph_capture_sizes"),
        *(
            "max_cudagraph_capture_size",
            "enable_sleep_mode",
            "enable_cumem_allocator",
            "renderer_num_workers",
        ),
        *("safetensors_load_strategy", "safetensors_prefetch_num_threads", "safetensors_prefetch_block_size"),
        *("use_tqdm_on_load", "download_dir", "mm_processor_cache_gb", "mm_processor_cache_type"),
        *("mm_shm_cache_max_object_size_mb", "mm_encoder_tp_mode", "skip_mm_profiling", "mm_tensor_ipc"),
        *("max_loras", "max_cpu_loras", "fully_sharded_loras", "uvicorn_log_level", "shutdown_timeout"),
        *("disable_uvicorn_access_log", "disable_access_log_for_endpoints", "disable_fastapi_docs"),
        *("disable_log_stats", "aggregate_engine_logging", "logging_config", "log_level", "log_error_stack"),
        *("max_log_len", "enable_log_outputs", "enable_log_deltas", "kv_cache_metrics"),
        *("kv_cache_metrics_sample", "cudagraph_metrics", "enable_mfu_metrics", "collect_detailed_traces"),
        *("enable_logging_iteration_details", "show_hidden_metrics_for_version", "otlp_traces_endpoint"),
        *("custom_histogram_buckets", "per_request_spec_decode_metrics", "enable_layerwise_nvtx_tracing"),
        *(
            "profiler_config",
            "ray_workers_use_nsight",
            "enable_server_load_tracking",
            "sse_keep_alive_interval",
        ),
        *("h11_max_incomplete_event_size", "h11_max_header_count", "enable_request_id_headers"),
        *("enable_offline_docs", "jit_monitor_mode", "jit_monitor_verbose", "kv_events_config"),
    }
)
SAMPLING = frozenset({"generation_config", "override_generation_config"})
# The defaults of a request that change how a token is drawn; any other key can change or cut an answer.
SAMPLING_DEFAULTS = frozenset(
    {
        *("temperature", "top_k", "top_p", "min_p", "typical_p", "repetition_penalty", "presence_penalty"),
        *("frequency_penalty", "do_sample", "length_penalty", "encoder_repetition_penalty", "penalty_alpha"),
        *("epsilon_cutoff", "eta_cutoff", "temperature_last", "top_h", "seed", "renormalize_logits"),
    }
)
# Arguments that stand in for a part of the checkpoint, by the part.
PARTS = {
    "dtype": "dtype",
    "quantization": "quantization",
    "quantization_config": "quantization",
    "kv_cache_dtype": "kv cache",
    "tokenizer": "tokenizer",
    "tokenizer_mode": "tokenizer",
    "tokenizer_revision": "tokenizer",
    "chat_template": "template",
    "hf_overrides": "config",
    "hf_config_path": "config",
}


def argument_class(name: str, values: Collection[str | None] = ()) -> ArgumentClass:
    """The class of a changed argument. values: its values on both sides, as JSON; None: not set.

    Of the two that set generation defaults it is the effective values that count (`generation.py`), which the
    fingerprint holds beside them.
    """
    if name in THROUGHPUT:
        # A dotted name is that of a class, which can do anything.
        has_class = name == "distributed_executor_backend" and any("." in (value or "") for value in values)
        return "answers" if has_class else "throughput"
    return "sampling" if name in SAMPLING else "answers"
