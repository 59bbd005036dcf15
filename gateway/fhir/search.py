"""Search, as other rooms use it: facts of a resource, a Query of a query string, the two compared.

Owns nothing itself. The parts: ``search_plan`` (what a parameter means), ``search_paths`` (where its values
lie), ``search_emit`` and ``search_values`` (facts), ``search_terms`` and ``search_query`` (questions),
``search_match`` (both together), ``search_sort`` (orders by value), ``search_encoding`` and ``search_dates`` (what
both sides share).
"""

from gateway.fhir.search_match import SearchMatcher, matches
from gateway.fhir.search_plan import Plan, Plans
from gateway.fhir.search_query import parse_query
from gateway.fhir.search_sort import SortValue, sort_value
from gateway.fhir.search_values import SearchExtractor

__all__ = ["Plan", "Plans", "SearchExtractor", "SearchMatcher", "SortValue", "matches", "parse_query",
           "sort_value"]
