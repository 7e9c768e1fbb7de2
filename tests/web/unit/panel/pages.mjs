// Pages of metrics for the tests of the panel.
import { parse } from "../../../../service/digitserve/web/page/metrics_text.js";

const CLASSIFY = 'grpc_method="Classify",grpc_service="digitserve.v1.DigitService"';

/** Return a page of a service that has answered so many images, one per call and batch, each within 1 ms. */
export function page(images, { ready = 2, pending = 0, restarts = 0, faults = 0, batch = 1, http = "" } = {}) {
  return parse(`
# HELP digitserve_images_total Images classified.
# TYPE digitserve_images_total counter
digitserve_images_total ${images}
digitserve_model_info{name="digits",provider="CPUExecutionProvider",precision="int8",sha256="a",version="4"} 1
digitserve_workers 2
digitserve_ready_workers ${ready}
digitserve_worker_restarts_total ${restarts}
digitserve_pending_images ${pending}
digitserve_cpu_seconds_total ${images / 100}
digitserve_resident_memory_bytes{process="workers"} 2e8
grpc_server_handled_total{${CLASSIFY},grpc_code="OK"} ${images}
grpc_server_handled_total{${CLASSIFY},grpc_code="Internal"} ${faults}
grpc_server_handling_seconds_bucket{${CLASSIFY},le="0.001"} ${images}
grpc_server_handling_seconds_bucket{${CLASSIFY},le="+Inf"} ${images}
grpc_server_handling_seconds_sum{${CLASSIFY}} ${images / 2000}
grpc_server_handling_seconds_count{${CLASSIFY}} ${images}
digitserve_inference_seconds_bucket{le="0.001"} ${images}
digitserve_inference_seconds_bucket{le="+Inf"} ${images}
digitserve_inference_seconds_sum ${images / 1000}
digitserve_batch_size_bucket{le="${batch}.0"} ${images}
digitserve_batch_size_bucket{le="+Inf"} ${images}
digitserve_batch_size_sum ${images}
${http}`);
}
