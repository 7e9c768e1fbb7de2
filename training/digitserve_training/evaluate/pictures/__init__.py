"""Evaluation on a folder of labelled image files: ``digitserve-train evaluate --pictures``.

    listing ──▶ Picture ──classifier──▶ Answer ──figures──▶ table (terminal), pictures.json
                                                       └──▶ sheet (PNG), gallery (HTML): the mistakes

``report`` runs all of it, and ``cli`` calls ``report``.
"""
