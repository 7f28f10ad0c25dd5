"""Bytes for the test of src/report/tensorboard.rs, written with TensorBoard's own encoder.

    pip install tensorboard==2.21.0 && python tests/golden/report_events.py
"""
import io

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

out = io.BytesIO()
writer = RecordWriter(out)
writer.write(Event(wall_time=1.5, file_version="brain.Event:2").SerializeToString())
writer.write(Event(wall_time=1.5, step=300, session_log=SessionLog(status=SessionLog.START)).SerializeToString())
value = Summary.Value(tag="pretrain/loss", simple_value=7.25)
writer.write(Event(wall_time=2.25, step=301, summary=Summary(value=[value])).SerializeToString())
print(out.getvalue().hex())
